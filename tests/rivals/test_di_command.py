"""Dataset Inference: `utils.verify di` as the owner types it."""

import json

import pytest
import torch
from commands import good, verify
from PIL import Image

import models
from utils.data.sets import load_data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, pack_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A source as train.py leaves one, a copy of its weights, and an untrained model."""
    folder = tmp_path_factory.mktemp("session")
    good("train", "-d", folder, "-dt", "digits", "-tt", "none", "-nq", 10, "-mt", "vgg11", "--width", 4, "--train-size",
         64, "--batch-size", 32, "-ep", 1, "--device", "cpu")
    source = folder / "digits_vgg11_none_10_"
    save_checkpoint(folder / "copy.pt", {"model": load_checkpoint(find_checkpoint(source, None))["model"]})
    save_checkpoint(folder / "benign.pt", pack_checkpoint(models.build("vgg11", 10, width=4), "vgg11"))
    save_checkpoint(folder / "eleven.pt", pack_checkpoint(models.build("vgg11", 11, width=4), "vgg11"))
    return folder, source


@pytest.fixture
def memory(session, monkeypatch):
    """Invented distances: larger on the source's training images, for models that hold its weights."""
    known = {image.numpy().tobytes() for image in load_data("digits", train_size=64).train.images}
    weights = load_checkpoint(find_checkpoint(session[1], None))["model"]["state_dict"]["1.linear.weight"]

    def distances(model, images, labels, kind, generator, svhn, bar):
        private = torch.tensor([image.numpy().tobytes() in known for image in images])
        knows = torch.equal(model[1].linear.weight, weights)
        noise = torch.randn(len(labels), 10, 3, generator=torch.Generator().manual_seed(int(images.sum())))
        return 5 + noise + (2.0 * private * knows).view(-1, 1, 1)

    monkeypatch.setattr("utils.rivals.dataset_inference.regressor.di_features", distances)


@pytest.mark.parametrize("layout", ["image", "official"])
def test_a_copy_is_claimed_and_a_benign_model_is_not(session, memory, layout, capsys, tmp_path):
    folder, source = session
    flags = ("--points", 64, "--layout", layout, "--device", "cpu", "--json", tmp_path / "di.json", "--plot",
             tmp_path / "di.png")
    status, out, _ = verify(capsys, "di", source, "--suspect", folder / "copy.pt", folder / "benign.pt", *flags)
    found = json.loads((tmp_path / "di.json").read_text())
    (copy, benign), claimed = found["suspects"], found["source"]
    assert claimed["claim"] and claimed["mean_difference"] > 1 and claimed["points"] == 32
    assert {k: v for k, v in copy.items() if k != "model"} == {k: v for k, v in claimed.items() if k != "model"}
    assert not benign["claim"] and benign["log10_p"] > -2 and abs(benign["mean_difference"]) < 0.6
    assert dict(claimed["curve"]).keys() == {2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32}  # half of the 64 points
    assert dict(claimed["curve"])[2] > dict(claimed["curve"])[11] > dict(claimed["curve"])[32]  # more points, surer
    assert Image.open(tmp_path / "di.png").size == (704, 440)
    assert (claimed["correct"] is None) == (layout == "official") and 0 <= claimed["unseen_accuracy"] <= 1
    assert status == 1 and "does not say that this model was stolen" in out and "inconclusive:" not in out
    rows = [line for line in out.splitlines() if "correct" not in line]
    assert "(source)" in rows[1] and [row.split()[-1] for row in rows[1:4]] == ["claim", "claim", "inconclusive"]
    assert verify(capsys, "di", source, "--suspect", folder / "copy.pt", *flags)[0] == 0


def test_blind_walk_command(session, capsys, monkeypatch):
    """With real distances: the source is hardly trained, shows nothing, and the command says so."""
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.RESTARTS", 1)
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.CHECKS", 10)
    folder, source = session
    flags = ("--suspect", folder / "benign.pt", "--walk", "blind", "--points", 20, "--m", 4, "--device", "cpu")
    status, out, _ = verify(capsys, "di", source, *flags)
    assert status == 1 and "Blind Walk" in out and "source itself is inconclusive" in out
    assert verify(capsys, "di", source, *flags)[1] == out  # the same seed, the same figures


def test_mingd_command(session, capsys, monkeypatch):
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.STEPS", 4)
    _, source = session
    status, out, _ = verify(capsys, "di", source, "--suspect", source, "--points", 8, "--m", 2, "--device", "cpu")
    rows = [line for line in out.splitlines() if str(source) in line]
    assert "MinGD" in out and "nan" not in out
    assert rows[0].replace(" (source)", 9 * " ") == rows[1] and status == 1 - rows[1].endswith("claim")


@pytest.mark.parametrize("flags, words", [
    (("--points", 41), "even"), (("--points", 40, "--m", 21), "m from 2"), (("--points", 66), "64 training"),
    (("--points", 40, "--suspect", "{folder}/eleven.pt"), "11 classes and the source 10"),
    (("--points", 40, "--suspect", "{folder}/nothing"), "no run in"),
    (("--points", 40, "--json", "{folder}/nowhere/a.json"), "there is no folder"),
])
def test_di_refuses_bad_flags(session, capsys, flags, words):
    folder, source = session
    flags = [str(flag).format(folder=folder) for flag in flags]
    status, _, err = verify(capsys, "di", source, "--suspect", source, "--device", "cpu", *flags)
    assert status == 2 and words in err


def test_a_source_without_its_data_is_refused(session, capsys, tmp_path):
    folder, source = session
    for run, words in ((folder / "benign.pt", "on which data"), (folder / "none", "no run in")):
        status, _, err = verify(capsys, "di", run, "--suspect", source, "--points", 40)
        assert status == 2 and words in err
    checkpoint = load_checkpoint(find_checkpoint(source, None))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"data_sha256": "0" * 64}}))
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints" / "checkpoint_nat_best.pt", checkpoint)
    status, _, err = verify(capsys, "di", tmp_path, "--suspect", source, "--points", 40)
    assert status == 2 and "not the images" in err
