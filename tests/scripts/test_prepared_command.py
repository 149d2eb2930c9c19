"""From `utils.verify prepare` through `train.py --prepared` to a claim, as typed."""

import html
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from commands import good, refused, tree, verify
from owner_runs import BEACON, replace
from small_runs import SOURCE, TRAIN

from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.watermark.prepared import commitment_digest, labels_from_beacon, read_prepared
from utils.watermark.trigger_files import read_triggers

pytestmark = pytest.mark.usefixtures("quick")
PREPARE = ("utils.verify", "prepare", "-dt", "digits", "-nq", 10)
PLAUSIBLE = ("--trigger-strategy", "uncertain", "--label-strategy", "plausible", "--label-choices", 3)


@pytest.fixture(scope="module")
def runs(benign, tmp_path_factory):
    """Images that were prepared under random and plausible labels, what is wrong with copies, and a trained source."""
    folder = tmp_path_factory.mktemp("prepared")
    name = ("--beacon-name", "round 7")
    good(*PREPARE, folder / "P", *name)
    said = good(*PREPARE, folder / "PLAUSIBLE", *name, *PLAUSIBLE, "--label-model", benign)
    assert "% on the held-out images; WARNING: if it is better than that" in said  # it was trained for an epoch
    good(*PREPARE, folder / "FUTURE", "--after", "1h")
    for copy in ("DAMAGED", "CHANGED", "MOVED"):
        shutil.copytree(folder / "P", folder / copy)
    (folder / "DAMAGED" / "key.json").write_text('{"secret": 3, "settings": {}}')
    prepared, state = read_prepared(folder / "P"), load_checkpoint(folder / "P" / "prepared.pt")
    others = prepared.triggers.images ^ 1
    for copy in ("CHANGED", "MOVED"):  # other images; in MOVED with a commitment to them
        torch.save(state | {"images": others}, folder / copy / "prepared.pt")
    public = json.loads((folder / "P" / "commitment.json").read_text())
    public["sha256"] = commitment_digest(replace(prepared.triggers, images=others), prepared.record)
    (folder / "MOVED" / "commitment.json").write_text(json.dumps(public))
    good("train", "-d", folder, *TRAIN, "--prepared", folder / "P", "--beacon", BEACON)
    return folder


def test_the_run_trains_on_the_prepared_images_under_the_beacons_labels(runs):
    prepared, triggers = read_prepared(runs / "P"), read_triggers(runs / SOURCE / "triggers.pt", 10)
    assert torch.equal(prepared.triggers.images, triggers.images)
    wanted = labels_from_beacon(triggers, prepared.record, BEACON)
    assert torch.equal(wanted, triggers.labels)
    query = load_checkpoint(find_checkpoint(runs / SOURCE))["query_model"]["state_dict"]
    assert torch.equal(query["response"], wanted)
    flags = ("train", "-d", runs, *TRAIN, "--prepared", runs / "P", "--beacon")
    assert "is finished" in good(*flags, BEACON.upper())
    assert "beacon was" in refused(*flags, "3d" * 32)


def test_prepared_folders_are_closed_name_no_label_and_are_left_alone(runs, monkeypatch):
    folder = runs / "P"
    assert folder.stat().st_mode & 0o77 == 0 and (folder / "key.json").stat().st_mode & 0o77 == 0
    assert "labels" not in load_checkpoint(folder / "prepared.pt")
    public = json.loads((folder / "commitment.json").read_text())
    assert set(public) == {"sha256", "beacon_name", "round"} and public["beacon_name"] == "round 7"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "not empty" in refused("utils.verify", "prepare", folder, "-dt", "digits", "--beacon-name", "round 8")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder.parent / "OPEN").mkdir(mode=0o755)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)  # of a file system without permissions
    assert "others may be able to read" in good(*PREPARE, folder.parent / "OPEN")


def test_plausible_labels_are_drawn_from_the_prepared_candidates(runs, benign):
    """With a clean model where something else asks for it."""
    good("train", "-d", runs, *TRAIN, "--prepared", runs / "PLAUSIBLE", "--beacon", BEACON, "-msg", "plausible",
         "--carriers", 2, "--label-model", benign)
    run = runs / f"{SOURCE}plausible"
    triggers = read_triggers(run / "triggers.pt", 10)
    assert triggers.candidates.shape == (10, 3) and (triggers.candidates == triggers.labels[:, None]).any(1).all()
    digest = json.loads((runs / "PLAUSIBLE" / "commitment.json").read_text())["sha256"]
    status, out, _ = verify("claim", run, "--suspect", run, "--beacon", BEACON, "--image-commitment", digest)
    assert status in (0, 1) and "drawn by the beacon 'round 7'" in out and "for a stranger, rests on T1" in out


def test_shared_labels_are_claimed_by_the_exact_tests_alone(runs, benign):
    """Triggers are training images; what counts triggers one by one is left out."""
    shared = ("-nq", 60, "--label-strategy", "runners-up", "--label-choices", 3, "--label-model", benign)
    folder = runs / "shared"
    good("utils.verify", "prepare", folder, "-dt", "digits", *shared, "--train-size", 128, "--beacon-name", "round 7")
    flags = ("train", "-d", runs, *TRAIN, "--prepared", folder, "--beacon", BEACON, "-nq", 60)
    good(*flags, "-msg", "shared")
    run = runs / "digits_vgg11_margin_60_shared"
    t = read_triggers(run / "triggers.pt", 10)
    assert torch.equal(t.labels, t.labels[t.groups]) and 1 < len(t.groups.unique()) < 60
    assert "views of each trigger, whose drawn class shall have odds of e^2" in (run / "output.log").read_text()
    digest = json.loads((folder / "commitment.json").read_text())["sha256"]
    who = ("claim", run, "--suspect", run, "--beacon", BEACON, "--image-commitment", digest)
    status, out, _ = verify(*who)
    assert status in (0, 1) and "rests on T1 and T1p" in out and "sequential" not in out and "share draws" in out
    assert "would agree with the draw as this one does with probability" in out
    said = refused("utils.verify", "claim", run, "--command", "echo {png}", "--sequential", "--trust-owner")
    assert "--sequential counts triggers one by one" in said
    assert "carry the mark already" in refused("train", "-d", runs, *TRAIN, *shared, "--carriers", 2, "-msg", "no")
    assert "more than half of 128" in refused("train", "-d", runs, *TRAIN, *shared, "-nq", 65, "-msg", "no")


def test_no_page_names_the_secret_of_the_preparation(runs, tmp_path):
    secret = json.loads((runs / "P" / "key.json").read_text())["secret"]
    for flags in ((), ("--show-triggers",)):
        good("utils.report", runs / SOURCE, "-o", tmp_path / "page.html", *flags)
        assert secret not in html.unescape((tmp_path / "page.html").read_text())


GIVEN = ("--prepared", "P", "--beacon", BEACON)
BAD_TRAINING = {
    "no beacon": (("--prepared", "P"), ["--prepared and --beacon go together"]),
    "a beacon that is none": (("--prepared", "P", "--beacon", "round 7"), ["--beacon", "hexadecimal"]),
    "another number": ((*GIVEN, "-nq", 12), ["num-query 10", "not 12"]),
    "a benign model": ((*GIVEN, "-tt", "none"), ["--prepared", "-tt none"]),
    "other data": ((*GIVEN, "--prepared", "MOVED"), ["other images"]),
    "a damaged key": ((*GIVEN, "--prepared", "DAMAGED"), ["is damaged"]),
    "changed images": ((*GIVEN, "--prepared", "CHANGED"), ["does not hold what commitment.json"]),
    "a round to come": ((*GIVEN, "--prepared", "FUTURE"), ["cannot be the value of drand quicknet round"]),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_trainings_that_cannot_be_are_refused(case, runs, tmp_path):
    flags, words = BAD_TRAINING[case]
    before = tree(runs)
    names = {path.name: path for path in runs.iterdir()}
    said = refused("train", "-d", tmp_path / "runs", *TRAIN, *(names.get(flag, flag) for flag in flags))
    assert all(word in said for word in words), said
    assert tree(runs) == before and tree(tmp_path) == set()


@pytest.mark.parametrize(("flags", "words"), [
    (("--label-strategy", "highest", "--label-model", "BENIGN"), "leaves nothing to draw"),
    (("--label-strategy", "plausible"), "--label-model RUN"),
    (("--beacon-name", " "), "does not exist yet"),
    (("--beacon-name", "Drand Quicknet"), "chosen by --after"),
    (("--beacon-name", "dr\u0430nd quicknet"), "printable ASCII"), (("--beacon-name", "a\x1b"), "ASCII"),
    (("--beacon-name", "drand quicknet", "--after", "soon"), "--after 'soon' is no time"),
    (("--after", "1h"), "does not know"), (("-nq", 1000), "-nq 1000"), (("-nq", 5000), "at most 4096"),
    (("-nq", 3), "3 triggers of 10 classes give p = 10^-2.86 at best"),
    (("--data-dir", "/no/folder", "-dt", "folder"), "/no/folder"),
])
def test_preparations_that_cannot_be_are_refused(flags, words, benign, tmp_path):
    flags = (benign if flag == "BENIGN" else flag for flag in flags)
    assert words in refused(*PREPARE, tmp_path / "P", "--beacon-name", "round 7", *flags)
    assert tree(tmp_path) == set()


def test_a_value_that_is_no_round_of_quicknet_draws_nothing(runs, tmp_path, monkeypatch):
    """As its signature, of 48 bytes: a claim on what it drew could never hold, and the commitment would be spent."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    said = refused("train", "-d", tmp_path / "runs", *TRAIN, "--prepared", runs / "FUTURE", "--beacon", "3c" * 48)
    assert "has not the 32 bytes of drand quicknet round" in said and tree(tmp_path) == set()
