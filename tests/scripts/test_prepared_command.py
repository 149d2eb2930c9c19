"""From `utils.verify prepare` through `train.py --prepared` to a claim, as typed."""

import html
import json
import shutil

import pytest
import torch
from commands import good, refused, tree, verify
from owner_runs import replace
from small_runs import BENIGN, SOURCE, TRAIN

from utils.ownership.commitment import read_owner
from utils.report import main as report_main
from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.verify import main as verify_main
from utils.watermark.prepared import commitment_digest, labels_from_beacon, read_prepared
from utils.watermark.trigger_files import read_triggers

pytestmark = pytest.mark.usefixtures("quick")

BEACON = "3c" * 32
PLAUSIBLE = ("--trigger-strategy", "uncertain", "--label-strategy", "plausible", "--label-choices", 3)


def verified(*flags) -> int:
    """The exit status of utils.verify, where nothing of what it prints matters."""
    try:
        return verify_main(list(map(str, flags)))
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A clean model, prepared images, and a source that was trained on them."""
    folder = tmp_path_factory.mktemp("prepared")
    good("train", "-d", folder, "-tt", "none", *TRAIN)
    prepare = ("prepare", "-dt", "digits", "-nq", 10, "--seed", 5, "--beacon-name", "round 7")
    assert verified(*prepare, folder / "random") == 0
    assert verified(*prepare, folder / "plausible", *PLAUSIBLE, "--label-model", folder / BENIGN) == 0
    good("train", "-d", folder, *TRAIN, "--prepared", folder / "random", "--beacon", BEACON)
    return folder


def test_the_run_trains_on_the_prepared_images_under_the_beacons_labels(runs):
    prepared, triggers = read_prepared(runs / "random"), read_triggers(runs / SOURCE / "triggers.pt", 10)
    assert torch.equal(prepared.triggers.images, triggers.images)
    digest = json.loads((runs / "random" / "commitment.json").read_text())["sha256"]
    wanted = labels_from_beacon(triggers, prepared.record, BEACON)
    assert torch.equal(wanted, triggers.labels)
    query = load_checkpoint(find_checkpoint(runs / SOURCE))["query_model"]["state_dict"]
    assert torch.equal(query["response"], wanted)
    record = read_owner(runs / SOURCE).record
    assert (record["beacon"], record["sha256"]) == (BEACON, digest)


def test_prepared_folders_are_closed_and_name_no_label(runs):
    folder = runs / "random"
    assert folder.stat().st_mode & 0o77 == 0 and (folder / "key.json").stat().st_mode & 0o77 == 0
    assert "labels" not in load_checkpoint(folder / "prepared.pt")
    public = json.loads((folder / "commitment.json").read_text())
    assert set(public) == {"sha256", "beacon_name", "round"} and public["beacon_name"] == "round 7"


def test_the_same_command_finds_its_run_and_another_beacon_does_not(runs):
    flags = ("train", "-d", runs, *TRAIN, "--prepared", runs / "random", "--beacon")
    assert "is finished" in good(*flags, BEACON.upper())
    assert "beacon was" in refused(*flags, "3d" * 32)


def test_plausible_labels_are_drawn_from_the_prepared_candidates(runs, capsys):
    good("train", "-d", runs, *TRAIN, "--prepared", runs / "plausible", "--beacon", BEACON, "-msg", "plausible")
    run = runs / f"{SOURCE}plausible"
    triggers = read_triggers(run / "triggers.pt", 10)
    assert triggers.candidates.shape == (10, 3) and (triggers.candidates == triggers.labels[:, None]).any(1).all()
    digest = read_owner(run).record["sha256"]
    status, out, _ = verify(capsys, "claim", run, "--suspect", run, "--beacon", BEACON, "--image-commitment", digest)
    assert status in (0, 1) and "drawn by the beacon 'round 7'" in out and "for a stranger, rests on T1" in out
    # clean models stay needed where something else asks for them
    good("train", "-d", runs, *TRAIN, "--prepared", runs / "plausible", "--beacon", BEACON, "--carriers", 2,
         "--label-model", runs / BENIGN, "-msg", "carriers")


def test_no_page_names_the_secret_of_the_preparation(runs, tmp_path, capsys):
    secret = json.loads((runs / "random" / "key.json").read_text())["secret"]
    for flags in ((), ("--show-triggers",)):
        report_main([str(runs / SOURCE), "-o", str(tmp_path / "page.html"), *flags])
        assert secret not in html.unescape((tmp_path / "page.html").read_text())
    capsys.readouterr()


BAD_TRAINING = {
    "no beacon": (("--prepared", "P"), ["--prepared and --beacon go together"]),
    "no preparation": (("--beacon", BEACON), ["--prepared and --beacon go together"]),
    "a beacon that is none": (("--prepared", "P", "--beacon", "round 7"), ["--beacon", "hexadecimal"]),
    "a folder that is none": (("--prepared", "/no/folder", "--beacon", BEACON), ["--prepared /no/folder"]),
    "another number": (("--prepared", "P", "--beacon", BEACON, "-nq", 12), ["num-query 10", "not 12"]),
    "another strategy": (("--prepared", "P", "--beacon", BEACON, "--label-strategy", "plausible"), ["label-strategy"]),
    "a model without use": (("--prepared", "P", "--beacon", BEACON, "--label-model", "P"), ["--carriers"]),
    "a benign model": (("--prepared", "P", "--beacon", BEACON, "-tt", "none"), ["--prepared", "-tt none"]),
    "other data": (("--prepared", "MOVED", "--beacon", BEACON), ["other images"]),
    "a damaged key": (("--prepared", "DAMAGED", "--beacon", BEACON), ["is damaged"]),
    "changed images": (("--prepared", "CHANGED", "--beacon", BEACON), ["does not hold what commitment.json"]),
    "a round to come": (("--prepared", "FUTURE", "--beacon", BEACON), ["cannot be the value of drand quicknet round"]),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_trainings_that_cannot_be_are_refused(case, runs, tmp_path):
    flags, words = BAD_TRAINING[case]
    for name in ("DAMAGED", "CHANGED"):
        shutil.copytree(runs / "random", tmp_path / name)
    (tmp_path / "DAMAGED" / "key.json").write_text('{"secret": 3, "settings": {}}')
    state = load_checkpoint(tmp_path / "CHANGED" / "prepared.pt")
    torch.save(state | {"images": state["images"] ^ 1}, tmp_path / "CHANGED" / "prepared.pt")
    assert verified("prepare", tmp_path / "FUTURE", "-dt", "digits", "-nq", 10, "--after", "1h") == 0
    if "MOVED" in flags:  # a preparation that is whole, of images that the data set does not hold
        move_preparation(runs / "random", tmp_path / "MOVED")
    names = {"P": runs / "random", **{name: tmp_path / name for name in ("MOVED", "DAMAGED", "CHANGED", "FUTURE")}}
    before = tree(tmp_path)
    said = refused("train", "-d", tmp_path / "runs", *TRAIN, *(names.get(flag, flag) for flag in flags))
    assert all(word in said for word in words), said
    assert tree(tmp_path) == before


def move_preparation(folder, to) -> None:
    """Write a preparation of other images, with a commitment to them."""
    shutil.copytree(folder, to)
    prepared = read_prepared(folder)
    moved = replace(prepared.triggers, images=prepared.triggers.images ^ 1)
    torch.save(load_checkpoint(to / "prepared.pt") | {"images": moved.images}, to / "prepared.pt")
    public = json.loads((to / "commitment.json").read_text())
    (to / "commitment.json").write_text(json.dumps(public | {"sha256": commitment_digest(moved, prepared.record)}))


@pytest.mark.parametrize(("flags", "words"), [
    (("--label-strategy", "highest", "--label-model", "CLEAN"), ["leaves nothing to draw"]),
    (("--beacon-name", " "), ["--beacon-name ''", "does not exist yet"]),
    (("--beacon-name", "drand quicknet round 30000000"), ["chosen by --after"]),
    (("--beacon-name", "dr\u0430nd quicknet"), ["'dr\\u0430nd quicknet'", "printable ASCII"]),
    (("--beacon-name", "\uff44rand qu\uff49cknet"), ["printable ASCII"]), (("--beacon-name", "a\x1b"), ["ASCII"]),
    (("--beacon-name", "Drand Quicknet"), ["chosen by --after"]), (("--after", "1h"), ["does not know"]),
    (("--beacon-name", "drand quicknet", "--after", "soon"), ["--after 'soon' is no time"]),
    (("-nq", 3), ["3 triggers of 10 classes give p = 10^-2.86 at best"]), (("-nq", 5000), ["at most 4096"]),
    (("--label-strategy", "plausible"), ["--label-model RUN"]),
    (("-nq", 1000), ["-nq 1000"]), (("--data-dir", "/no/folder", "-dt", "folder"), ["/no/folder"]),
])
def test_preparations_that_cannot_be_are_refused(flags, words, runs, tmp_path, capsys):
    flags = [runs / BENIGN if flag == "CLEAN" else flag for flag in flags]
    name = () if "--beacon-name" in flags else ("--beacon-name", "round 7")
    status, _, err = verify(capsys, "prepare", tmp_path / "P", "-dt", "digits", "-nq", 10, *name, *flags)
    assert status == 2 and all(word in err for word in words), err
    assert tree(tmp_path) == set()


def test_a_folder_that_is_not_empty_is_left_alone(runs, capsys):
    before = {path: path.read_bytes() for path in (runs / "random").iterdir()}
    status, _, err = verify(capsys, "prepare", runs / "random", "-dt", "digits", "--beacon-name", "round 8")
    assert status == 2 and "not empty" in err
    assert {path: path.read_bytes() for path in (runs / "random").iterdir()} == before
