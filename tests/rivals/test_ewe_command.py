"""Entangled watermarks: `train.py -tt ewe`, its triggers and its flags."""

import itertools
import math
import os
import signal

import pytest
import torch
from commands import call, good, refused, rows_of, summary, tree
from comparing import same_runs
from photos import photos

from utils.flags import train_flags
from utils.ownership.commitment import commit_triggers
from utils.rivals.ewe import EntangledObjective
from utils.runs.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("quick")

DATA = ("-dt", "digits", "-nq", 6, "--train-size", 192, "--batch-size", 16, "--width", 2, "--device", "cpu")
TRAIN = (*DATA, "-mt", "vgg11", "-tt", "ewe", "-ep", 1, "--ewe-source", 8, "--ewe-epochs", 0.25, "--select", "last")
SOURCE = "digits_vgg11_ewe_6_"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ewe")
    good("train", "-d", folder, *TRAIN)
    return folder


def test_the_run_keeps_its_triggers_and_surrogates_are_tested_on_them(unbroken):
    run = unbroken / SOURCE
    rows = rows_of(run)
    assert ["trigger_accuracy" in row for row in rows] == [False, True, True]
    for row, i in itertools.product(rows[1:], (1, 2, 3)):
        # six triggers and six clean images; distances from 0 to 1 over a temperature near 100 leave log(11 / 5) +- 0.01
        assert row[f"snnl_{i}"] == pytest.approx(math.log(11 / 5), abs=0.0125)
        assert 0 < abs(row[f"temperature_{i}"] - 1) < 0.1  # it moves, by about 0.1 * 0.01 a step at most
    best, first = (load_checkpoint(run / f"checkpoints/checkpoint_{name}.pt") for name in ("nat_best", "init"))
    assert best["epoch"] >= 1 and "query_model" not in first
    kept, held = load_checkpoint(run / "triggers.pt"), best["query_model"]["state_dict"]
    assert torch.equal(kept["images"], held["query"]) and kept["images"].dtype == torch.uint8
    assert (kept["labels"] == 0).all() and (kept["true_labels"] == 8).all()
    s = summary(run)
    assert s["objective"] == "ewe" and s["clean"] is not None and s["log10_p"]["T1"] is None
    assert s["epochs"] == s["chosen_epoch"] == len(rows)
    assert "only their owner can believe a claim" in (run / "output.log").read_text()
    flags = ("-e", unbroken, *DATA, "-tmt", "vgg11", "-dmt", "vgg11", "-tt", "ewe", "-ep", 1)
    good("extraction", *flags, "-at", "soft")
    assert summary(run / "extraction")["trigger_size"] == 6 and summary(run / "extraction")["log10_p"]["T1"] is None


@pytest.mark.parametrize("at", [5, 20, "commitment"])
def test_an_interrupted_ewe_run_resumes_bit_equal(at, unbroken, tmp_path, monkeypatch):
    """By SIGTERM in phase 1 and in phase 3, and by an interrupt between phase 2 and the next checkpoint."""
    if at == "commitment":
        def end(*args, **more):
            commit_triggers(*args, **more)
            raise KeyboardInterrupt

        monkeypatch.setattr("train.commit_triggers", end)
    else:
        whole, calls = EntangledObjective.__call__, iter(range(10**6))

        def hooked(*args):
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*args)

        monkeypatch.setattr(EntangledObjective, "__call__", hooked)
    done = call("train", "-d", tmp_path, *TRAIN)
    assert done.status == (130 if at == "commitment" else 143), done.err
    monkeypatch.undo()
    good("train", "-d", tmp_path, *TRAIN)
    same_runs(tmp_path / SOURCE, unbroken / SOURCE)
    assert "finished" in good("train", "-d", tmp_path, *TRAIN)


def test_triggers_may_come_from_another_data_set(tmp_path):
    """A digit among photographs of 48 pixels has no true label; then a class with a patch."""
    data, runs = photos(tmp_path / "pets", n=40), tmp_path / "runs"
    flags = ("-dt", "folder", "--data-dir", data, "-nq", 3, "--batch-size", 16, "--width", 2, "--device", "cpu",
             "--image-size", 48)
    train = ("-d", runs, *flags, "-mt", "vgg11", "-tt", "ewe", "-ep", 1, "--ewe-epochs", 1, "--ewe-steps", 1)
    good("train", *train, "--ewe-source", 1, "-msg", "patch")  # first, from images that are decoded for it
    cars = photos(tmp_path / "more", (".",), ("car",), 3, seed=9) / "car"
    good("train", *train, "--ewe-source", f"{cars}/", "-msg", "cars")
    assert load_checkpoint(runs / "folder_vgg11_ewe_3_cars" / "triggers.pt")["images"].shape == (3, 3, 48, 48)
    good("train", *train, "--ewe-source", "digits")
    kept = load_checkpoint(runs / "folder_vgg11_ewe_3_" / "triggers.pt")
    assert kept["true_labels"].shape == kept["sources"].shape == (3, 0) and (kept["labels"] == 0).all()
    patched = load_checkpoint(runs / "folder_vgg11_ewe_3_patch" / "triggers.pt")
    assert kept["images"].shape == patched["images"].shape == (3, 3, 48, 48) and (patched["true_labels"] == 1).all()
    assert patched["sources"].shape == (3, 0)  # training images, whose numbers those of val/ may have too
    said = refused("train", *train, "--ewe-source", "svhn:9", "-msg", "x")
    assert "--ewe-source svhn:9" in said and "--ewe-source digits" in said
    for folder, words in ((data, "no image files"), (data / "test" / "cat", " test images")):
        said = refused("train", *train, "--ewe-source", f"{folder}/", "-msg", "x")
        assert f"--ewe-source {folder}/" in said and words in said


@pytest.mark.parametrize("flags, words", [
    (("--ewe-target", 10), ["--ewe-target 10", "0 to 9"]),
    (("--ewe-source", 0), ["--ewe-source 0", "--ewe-target 0"]),
    (("--ewe-source", "mnist"), ["--ewe-source", "svhn:DIGIT"]),
    (("--ewe-source", "digits"), ["--ewe-source digits", "-dt digits"]),
    (("-nq", 60), ["-nq 60", "--ewe-source 8"]),
    (("--batch-size", 64), ["--ewe-target 0", "--batch-size 64"]),
    (("--ewe-epochs", 0.01), ["--ewe-epochs 0.01", "pass"]),
    (("-nm", 2), ["-nm", "-tt ewe makes its triggers"]),
])
def test_bad_ewe_flags_are_refused(flags, words, tmp_path):
    said = refused("train", "-d", tmp_path / "runs", *TRAIN, *flags)
    assert all(word in said for word in words), said
    assert tree(tmp_path) == set()


def test_ewe_defaults_are_the_authors_and_other_trainings_keep_theirs():
    authors, typed = train_flags(["-tt", "ewe"]), train_flags(["-tt", "ewe", "-ep", "200", "--lr", "0.1"])
    assert (authors.epoch, authors.lr, authors.weight_decay) == (50, 1e-3, 0)
    assert (typed.epoch, typed.lr) == (200, 0.1) and authors.label_strategy == "single"
    for kind in ("none", "base", "margin"):  # recorded as before, so that older run folders can be resumed
        other = train_flags(["-tt", kind])
        assert (other.epoch, other.lr, other.weight_decay) == (200, 0.1, 1e-4)
        assert not any(name.startswith(("ewe_", "rs_")) for name in vars(other))
