"""Randomised smoothing: `train.py -tt rs` and `utils.verify certify` end to end."""

import json
import signal

import numpy as np
import pytest
import torch
from commands import call, good, refused, summary, tree, verify
from comparing import same_runs

from utils.flags import extraction_flags, train_flags
from utils.runs.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("quick")

DIGITS = ("-dt", "digits", "-nq", 8, "--train-size", 128, "--batch-size", 32, "--width", 2, "--device", "cpu")
RS = ("-tt", "rs", *DIGITS, "-mt", "vgg11", "--rs-draws", 2, "--rs-sigma-step", 0.5, "--rs-warmup", 0, "-ep", 3,
      "--select", "last")
RUN = "digits_vgg11_rs_8_"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The runs of a source trained by RS and of a benign model."""
    folder = tmp_path_factory.mktemp("rs")
    good("train", "-d", folder, *RS)
    good("train", "-d", folder, "-tt", "none", *DIGITS, "-mt", "vgg11", "-ep", 1)
    return folder


@pytest.mark.parametrize("steps", [2, 6])  # inside the first epoch, which has no robust pass, and inside the second
def test_smoothing_interrupted_inside_an_epoch_ends_bit_equal(world, tmp_path, monkeypatch, steps):
    asked = iter(range(1, 10**6))
    monkeypatch.setattr("utils.training.loop.agree_on_signal",
                        lambda *_: signal.SIGTERM if next(asked) == steps else None)
    stopped = call("train", "-d", tmp_path, *RS)
    assert stopped.status == 128 + signal.SIGTERM, stopped.err
    saved = load_checkpoint(tmp_path / RUN / "checkpoints" / "checkpoint_latest.pt")["training"]
    assert saved["step"] == (steps if steps < 4 else steps - 5) and "momentum_buffer" in saved["optimizer"][0]
    monkeypatch.undo()
    assert "continuing in epoch" in good("train", "-d", tmp_path, *RS)
    same_runs(tmp_path / RUN, world / RUN)


def test_source_run(world):
    s = summary(world / RUN)
    assert s["role"] == "source" and s["objective"] == "rs" and s["clean"] is None and s["train_size"] == 128
    assert s["log10_p"]["T1"] is None  # one label for all, not drawn at random
    settings = json.loads((world / RUN / "run.json").read_text())["settings"]
    assert settings["rs_draws"] == 2 and settings["lr"] == 0.05 and settings["label_strategy"] == "single"
    assert (load_checkpoint(world / RUN / "triggers.pt")["labels"] == 4).all()
    assert "--rs-freeze-bn" in (world / RUN / "output.log").read_text()  # its epochs are short
    assert "is finished" in good("train", "-d", world, *RS)
    good("extraction", "-d", world, "-tt", "rs", *DIGITS, "-tmt", "vgg11", "-dmt", "vgg11", "-at", "soft", "-ep", 1)
    s = summary(world / RUN / "extraction")
    assert s["trigger_size"] == 8 and s["log10_p"]["T1"] is None


def test_smoothing_defaults_are_the_authors_and_a_thief_keeps_his():
    rs, thief = train_flags(["-tt", "rs"]), extraction_flags(["-tt", "rs"])
    assert (rs.epoch, rs.lr, rs.rs_sigma, rs.rs_sigma_step, rs.rs_draws, rs.rs_warmup, rs.rs_batch, rs.rs_label) == (
        100, 0.05, 1.0, 0.05, 100, 5, 64, 4)
    assert (thief.epoch, thief.lr) == (200, 0.1)


@pytest.mark.parametrize("flags, words", [
    (("-tt", "margin", *DIGITS, "--rs-draws", 3), "--rs-draws is a flag of -tt rs"), ((*RS, "-nq", 140), "-nq 140"),
    ((*RS, "--rs-sigma-step", 0.3), "--rs-sigma 1 is no multiple of --rs-sigma-step 0.3"),
    ((*RS, "--rs-label", 10), "--rs-label 10: digits has 10 classes"), ((*RS, "-nm", 2), "-nm, ")])
def test_bad_smoothing_flags_are_refused_before_anything_is_written(tmp_path, flags, words):
    assert words in refused("train", "-d", tmp_path / "new", *flags) and not tree(tmp_path)


def test_certify_command(world, tmp_path):
    command = (world / RUN, "--benign", world / "digits_vgg11_none_8_", "--draws", 40, "--device", "cpu", "--json",
               tmp_path / "c.json")
    status, out, _ = verify("certify", *command)
    assert status == 0 and "most frequent class" in out and "eps 2: none" in out and f"benign {world}" in out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["settings"] == {"draws": 40, "sigma": 1.0, "confidence": 0.99, "seed": 0}
    assert content["models"][0]["trigger_accuracy"] == summary(world / RUN)["trigger_hits"] / 8
    for model in content["models"]:
        assert 0.1 <= model["most_frequent_class"] <= 1 and model["certified"]["2.0"] is None
        bounds = [b for b in model["certified"].values() if b is not None]
        assert bounds == sorted(bounds, reverse=True) and bounds[0] <= model["smoothed_median"]
    assert verify("certify", *command)[1] == out  # the same draws


def test_the_radius_is_where_the_bound_beats_the_controls(world, monkeypatch):
    """The k-th of 1,000 accuracies is k / 1000: at eps 0.4, 0.6 and 0.8 the bounds are 309, 241 and 181 of 1,000."""
    found = iter([np.arange(1000) / 1000, np.full(1000, 0.2)])
    monkeypatch.setattr("utils.rivals.randomized_smoothing.smoothed_accuracies",
                        lambda *_: (next(found), 0.1))
    out = verify("certify", world / RUN, "--benign", world / "digits_vgg11_none_8_")[1]
    assert "certified l2 radius: 0.6, the largest eps whose bound is above 20.00 %" in out


def test_what_cannot_be_certified_is_refused(world, tmp_path):
    checkpoint = load_checkpoint(world / RUN / "checkpoints" / "checkpoint_latest.pt")
    del checkpoint["query_model"]
    torch.save(checkpoint, tmp_path / "bare.pt")
    assert "holds no trigger set" in refused("utils.verify", "certify", tmp_path / "bare.pt")
    assert "is no independent model" in refused("utils.verify", "certify", world / RUN, "--benign", world / RUN)
