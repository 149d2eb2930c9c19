"""The commands from a clean model to a claim, with uncertain triggers under plausible labels."""

import json
import math

import pytest
import torch
from commands import good, refused, tree, verify
from small_runs import BENIGN, SOURCE, STEAL, TRAIN

from utils.data.sets import load_data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.system.files import sha256_of_file
from utils.training.metrics import predict
from utils.watermark.carriers import last_features, nearest
from utils.watermark.trigger_files import read_triggers, unpack_source

pytestmark = pytest.mark.usefixtures("quick")

FLAGS = ("--trigger-strategy", "uncertain", "--label-strategy", "plausible", "--label-choices", 3)
CLEAN = f"{BENIGN}clean"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a clean model, a margin source whose triggers it chose, and a copy of that source."""
    folder = tmp_path_factory.mktemp("plausible")
    good("train", "-d", folder, "-tt", "none", *TRAIN, "-msg", "clean")
    good("train", "-d", folder, "-tt", "margin", *TRAIN, "-ep", 2, *FLAGS, "--label-model", folder / CLEAN)
    (folder / "soft.txt").write_text(good("extraction", "-e", folder, *STEAL, "-at", "soft"))
    return folder


def t1_by_hand(model, triggers) -> float:
    """log10 P(Bin(W, 1/3) >= h) of a model, added up from binomial coefficients."""
    answers = predict(model, triggers.images).argmax(1)
    w = int((triggers.candidates == answers[:, None]).any(dim=1).sum())
    h = int((answers == triggers.labels).sum())
    return math.log10(sum(math.comb(w, k) * 2 ** (w - k) for k in range(h, w + 1)) / 3**w)


def source_of(runs):
    path = find_checkpoint(runs / SOURCE)
    return unpack_source(load_checkpoint(path), path)


def test_triggers_and_candidates_are_those_of_the_clean_model(runs):
    _, triggers = source_of(runs)
    clean = find_checkpoint(runs / CLEAN)
    held_out = load_data("digits").held_out
    p = predict(read_model(clean), held_out.images).double().softmax(1)
    most = (-(p * p.log()).sum(1)).topk(10).indices.sort().values
    assert triggers.sources.flatten().tolist() == held_out.indices[most].tolist()
    assert triggers.candidates.tolist() == predict(read_model(clean), triggers.images).topk(3).indices.tolist()
    key = json.loads((runs / SOURCE / "run.json").read_text())["settings"]
    assert (key["trigger_strategy"], key["label_strategy"], key["label_choices"]) == ("uncertain", "plausible", 3)
    assert key["label_model_sha256"] == sha256_of_file(clean)


def test_a_claim_rests_on_t1(runs, tmp_path, capsys):
    _, triggers = source_of(runs)
    for suspect in (runs / SOURCE / "extraction", runs / CLEAN):
        p = t1_by_hand(read_model(find_checkpoint(suspect)), triggers)
        status, out, _ = verify(capsys, "claim", runs / SOURCE, "--trust-owner", "--suspect", suspect, "--json",
                                tmp_path / "c.json")
        report = json.loads((tmp_path / "c.json").read_text())
        assert status == (0 if p <= -3 else 1) and "commitment   none" in out and "rests on T1" in out
        assert report["tests"]["T1"]["log10_p"] == pytest.approx(p)
        assert report["curve"]["median"][-1] == pytest.approx(p)
        assert "H0 hit rate 0.3333 (1 / candidates among answers that are candidates)" in out
    # answers that are the assigned labels: 10 of 10 at 1/3, p = 3^-10 = 1.7e-5
    capsys.readouterr()
    assert verify(capsys, "export", runs / SOURCE, "--to", tmp_path / "out")[0] == 0
    images = json.loads((tmp_path / "out" / "key.json").read_text())["images"]
    (tmp_path / "a.csv").write_text("".join(f"{name},{entry['label']}\n" for name, entry in images.items()))
    status, out, _ = verify(capsys, "claim", runs / SOURCE, "--trust-owner", "--predictions", tmp_path / "a.csv")
    assert status == 0 and "T1           log10 p = -4.77 (label randomisation)" in out


def test_the_same_command_finds_its_run_and_another_is_refused(runs):
    flags = ("-d", runs, "-tt", "margin", *TRAIN, "-ep", 2, "--label-model", runs / CLEAN)
    assert "is finished" in good("train", *flags, *FLAGS)
    assert "trigger-strategy was 'uncertain', is None" in refused("train", *flags, *FLAGS[2:])
    said = refused("train", *flags, *FLAGS, "--label-choices", 2)
    assert "label-choices was 3, is 2" in said


def test_carriers_are_trained_under_labels_of_triggers(runs, tmp_path):
    """The first loss is that of the relabelled images; everything else, triggers and their labels, stays as it is."""
    common = ("-d", tmp_path, *TRAIN, *FLAGS, "--label-model", runs / CLEAN, "-ep", 1)
    for name, flags in (("without", ()), ("with", ("--carriers", 4)), ("again", ("--carriers", 4))):
        said = good("train", *common, "-tt", "base", *flags, "-msg", name)
        assert ("carriers: " in said) == bool(flags)
    row = lambda name: json.loads(next(tmp_path.glob(f"*_{name}/metrics.jsonl")).read_text().splitlines()[0])
    without, carried, again = row("without"), row("with"), row("again")
    assert without["loss_obj"] != carried["loss_obj"] == again["loss_obj"]
    sets = [read_triggers(next(tmp_path.glob(f"*_{name}/triggers.pt")), 10) for name in ("without", "with")]
    assert all(torch.equal(a, b) for a, b in zip(*sets))
    said = next(tmp_path.glob("*_with/output.log")).read_text()
    model = read_model(find_checkpoint(runs / CLEAN))
    train = load_data("digits", train_size=128).train
    near = nearest(last_features(model, train.images), last_features(model, sets[0].images), 4).unique()
    assert f"carriers: {len(near)} of {len(train.labels)} training images" in said


BAD = {
    "uncertain without a model": (FLAGS[:2], ["--trigger-strategy uncertain", "--label-model"]),
    "plausible without a model": (("--label-strategy", "plausible"), ["plausible", "--label-model"]),
    "a model for random strategies": (("--trigger-strategy", "random", "--label-model", "RUN"), ["random takes none"]),
    "choices of random labels": (("--label-choices", 2), ["--label-choices", "--label-strategy plausible"]),
    "carriers without a model": (("--carriers", 3), ["--carriers", "--label-model"]),
    "carriers of a benign model": (("--carriers", 3, "-tt", "none", "--label-model", "RUN"),
                                   ["--carriers", "-tt none"]),
    "more carriers than images": (("--carriers", 5000, "--label-model", "RUN"), ["--carriers 5000", "training images"]),
    "one choice": (("--label-choices", 1, *FLAGS[:4], "--label-model", "RUN"), ["--label-choices", "at least 2"]),
    "more choices than classes": ((*FLAGS[:4], "--label-choices", 11, "--label-model", "RUN"),
                                  ["--label-choices 11", "10 classes", "2 to 10"]),
    "mixed triggers": ((*FLAGS, "--label-model", "RUN", "-nm", 2), ["--trigger-strategy uncertain", "-nm 2"]),
    "a model that does not exist": ((*FLAGS, "--label-model", "/no/run"), ["/no/run"]),
    "EWE's own triggers": (("-tt", "ewe", *FLAGS[:2], "--label-model", "RUN"),
                           ["--trigger-strategy", "--ewe-triggers shared"]),
    "RS's own labels": (("-tt", "rs", "-ep", 9, *FLAGS[2:], "--label-model", "RUN"),
                        ["--label-strategy", "--rs-triggers shared"]),
}


@pytest.mark.parametrize("case", BAD)
def test_flags_that_do_not_go_together_are_refused(case, runs, tmp_path):
    flags, words = BAD[case]
    flags = [runs / CLEAN if flag == "RUN" else flag for flag in flags]
    said = refused("train", "-d", tmp_path / "runs", "-tt", "margin", *TRAIN, *flags)
    assert all(word in said for word in words), said
    assert tree(tmp_path) == set()
