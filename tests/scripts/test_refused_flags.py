"""Bad flags of the scripts: one sentence, status 2, no traceback, no folder left."""

import argparse

import pytest
import torch
from commands import refused, summary, tree
from small_runs import STEAL, TRAIN

from utils.ownership.results import TriggerTests
from utils.runs.weights import read_label_model
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet

UNCERTAIN, PLAUSIBLE = ("--trigger-strategy", "uncertain"), ("--label-strategy", "plausible")
WITH_MODEL = ("--label-model", "BENIGN")
BAD_TRAIN = {
    "more triggers than images": (("-nq", 143), ["-nq 143", "143 held-out", "-nq 142"]),
    "more mixed images than there are": (("-nq", 72, "-nm", 2), ["-nq", "-nm 2"]),
    "as many mixed images as classes": (("-nq", 5, "-nm", 10), ["-nm 10", "all 10 classes"]),
    "more training images than there are": (("--train-size", 1296), ["--train-size 1296", "1295 training images"]),
    "rate beyond float32": (("--lr", "1e300"), ["--lr"]),
    "a weight that is no number": (("-v", "nan"), ["-v/--variable: nan must be finite and at least 0"]),
    "batch too large": (("--batch-size", 129), ["--batch-size 129", "128"]),
    "message with a slash": (("-msg", "a/b"), ["'/'"]),
    "stopped after more epochs than there are": (("--stop-after", 2), ["--stop-after 2", "-ep 1"]),
    "stopped in a rival's phases": (("-tt", "ewe", "--stop-after", 1), ["--stop-after 1", "-tt ewe"]),
    "fp16 without its scale": (("-tt", "ewe", "--amp", "fp16"), ["--amp fp16", "ewe", "bf16"]),
    "an ascent that is not there": (("-tt", "base", "--bn-stats", "eval"), ["--bn-stats eval", "base"]),
    "no folder of images": (("-dt", "folder", "--data-dir", "/no/images"), ["/no/images"]),
    "labels without a model": (("--label-strategy", "highest"), ["--label-model"]),
    "a model that does not exist": (("--label-strategy", "lowest", "--label-model", "/no/run"), ["/no/run"]),
    "a model for random strategies": (WITH_MODEL, ["random takes none"]),
    "more triggers than a claim takes": (("-nq", 4097), ["-nq 4097", "4096"]),
    "a value that is written on to its flag": (("-ep5",), ["unrecognized arguments: -ep5"]),
    "all flags as one, as zsh has $F": (("-dt digits --width 8",), ["unrecognized arguments: -dt digits --width 8"]),
    "the longest message": (("-msg", "a" * 151), ["-msg", "too long"]),
    "a share of too much": (("--carriers", 0.7, *WITH_MODEL), ["'0.7' is no share above 0 and up to 0.5"]),
    "one choice": (("--label-choices", 1, *PLAUSIBLE, *WITH_MODEL), ["--label-choices", "at least 2"]),
    "choices of what is drawn among all": (("--label-choices", 3), ["--label-choices is for --label-strategy"]),
    "mixed images that share draws": (("--label-strategy", "runners-up", *WITH_MODEL, "-nm", 2),
                                      ["--label-strategy runners-up chooses its images itself"]),
    "uncertain images that share draws": (("--label-strategy", "runners-up", *WITH_MODEL, *UNCERTAIN),
                                          ["--label-strategy runners-up chooses its images itself"]),
    "more choices than classes": ((*PLAUSIBLE, "--label-choices", 11, *WITH_MODEL),
                                  ["--label-choices 11", "10 classes", "2 to 10"]),
    "carriers without a model": (("--carriers", 3), ["--carriers", "--label-model"]),
    "more carriers than images": (("--carriers", 5000, *WITH_MODEL), ["--carriers 5000", "training images"]),
    "mixed triggers": ((*UNCERTAIN, *WITH_MODEL, "-nm", 2), ["--trigger-strategy uncertain", "-nm 2"]),
    "RS's own labels": (("-tt", "rs", "-ep", 9, *PLAUSIBLE, *WITH_MODEL), ["--label-strategy", "-tt rs makes its"]),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_bad_flags_of_train_are_refused(case, benign, tmp_path):
    flags, words = BAD_TRAIN[case]
    said = refused("train", "-d", tmp_path / "runs", "-tt", "margin", *TRAIN,
                   *(benign if flag == "BENIGN" else flag for flag in flags))
    assert all(word in said for word in words), said
    assert tree(tmp_path) == set()


def test_clean_models_of_another_image_size_and_shortened_flags_are_refused(benign):
    digits = [str(i) for i in range(10)]
    triggers = lambda size: TriggerSet(torch.zeros(2, 3, size, size, dtype=torch.uint8), torch.zeros(2))
    for size, classes, words in ((64, digits, "of 32 pixels apart, wanted are 10 classes of 64 pixels"),
                                 (32, digits[::-1], "was trained on other classes, or on these in another order")):
        with pytest.raises(Refusal, match=f"--label-model .* {words}"):
            read_label_model(argparse.Namespace(label_model=[benign]), argparse.Namespace(size=size, classes=classes))
        with pytest.raises(Refusal, match=f"--benign .* {words}"):
            TriggerTests(triggers(size), 10, True, [benign], names=classes)
    # a checkpoint that is named as a file need not be the one whose accuracy the run reports
    known = [TriggerTests(triggers(32), 10, True, [of], names=digits).bank[0][2]
             for of in (benign, benign / "checkpoints" / "checkpoint_init.pt")]
    assert known == [summary(benign)["test_accuracy"], None]
    assert "--trust" in refused("utils.verify", "claim", benign, "--suspect", benign, "--trust")


@pytest.mark.parametrize("script, flags", [("train", TRAIN), ("extraction", STEAL), ("distill", STEAL)])
def test_a_device_a_folder_and_a_run_that_are_not_there_are_refused(script, flags, tmp_path):
    if not torch.cuda.is_available():
        assert "--device cuda" in refused(script, "-d", tmp_path / "runs", *flags, "--device", "cuda")
    if script != "train":
        said = refused(script, "-e", tmp_path / "runs", *flags, "-msg", "gone")
        assert f"{tmp_path}/runs/digits_vgg11_margin_10_gone" in said
    assert tree(tmp_path) == set()
    (tmp_path / "file").write_text("")
    for more in ((), ("--overwrite",)):
        assert str(tmp_path / "file") in refused(script, "-d", tmp_path / "file" / "runs", *flags, *more)
    assert tree(tmp_path) == {tmp_path / "file"}


def test_a_missing_archive_is_named_when_there_is_no_network(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for dataset, archive in (("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz"),
                             ("svhn", "train_32x32.mat")):
        flags = (*TRAIN, "-dt", dataset, "--data-dir", tmp_path / "data")
        said = refused("train", "-d", tmp_path / "runs", *flags)
        assert archive in said and str(tmp_path / "data") in said and "place it in that folder" in said
        assert tree(tmp_path) == set()
