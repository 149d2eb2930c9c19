"""Bad flags of the scripts: one sentence, status 2, no traceback, no folder left."""

import pytest
import torch
from commands import refused, tree
from small_runs import STEAL, TRAIN

BAD_TRAIN = {
    "more triggers than images": (("-nq", 143), ["-nq 143", "143 held-out", "-nq 142"]),
    "more mixed images than there are": (("-nq", 72, "-nm", 2), ["-nq", "-nm 2"]),
    "no number": (("-ep", "many"), ["-ep", "whole number"]),
    "rate that is none": (("--lr", "nan"), ["--lr"]),
    "rate beyond float32": (("--lr", "1e300"), ["--lr"]),
    "unknown data set": (("-dt", "mnist"), ["mnist", "digits"]),
    "unknown model": (("-mt", "res19"), ["res19", "res18"]),
    "unknown flag": (("--num-triggers", 5), ["--num-triggers"]),
    "batch too large": (("--batch-size", 129), ["--batch-size 129", "128"]),
    "more images than there are": (("--train-size", 1296), ["--train-size 1296", "1295"]),
    "message with a slash": (("-msg", "a/b"), ["'/'"]),
    "labels without a model": (("--label-strategy", "highest"), ["--label-model"]),
    "a model without need": (("--label-model", "somewhere"), ["--label-strategy"]),
    "label model that does not exist": (("--label-strategy", "lowest", "--label-model", "/no/run"), ["/no/run"]),
    "stopped after more epochs than there are": (("--stop-after", 2), ["--stop-after 2", "-ep 1"]),
    "no such precision": (("--amp", "fp8"), ["--amp", "bf16", "fp16"]),
    "fp16 without its scale": (("-tt", "ewe", "--amp", "fp16"), ["--amp fp16", "ewe", "bf16"]),
    "an ascent that is not there": (("-tt", "base", "--bn-stats", "eval"), ["--bn-stats eval", "base"]),
    "no folder of images": (("-dt", "folder", "--data-dir", "/no/images"), ["/no/images"]),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_bad_flags_of_train_are_refused(case, tmp_path):
    flags, words = BAD_TRAIN[case]
    said = refused("train", "-d", tmp_path / "runs", "-tt", "margin", *TRAIN, *flags)
    assert all(word in said for word in words), said
    assert tree(tmp_path) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script, flags", [("train", TRAIN), ("extraction", STEAL), ("distill", STEAL)])
def test_device_cuda_is_refused_without_a_gpu(script, flags, tmp_path):
    assert "--device cuda" in refused(script, "-d", tmp_path / "runs", *flags, "--device", "cuda")
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("script, flags", [("train", TRAIN), ("extraction", STEAL)])
def test_a_folder_that_cannot_be_made_is_refused(script, flags, tmp_path):
    (tmp_path / "file").write_text("")
    for more in ((), ("--overwrite",)):
        said = refused(script, "-d", tmp_path / "file" / "runs", *flags, *more)
        assert str(tmp_path / "file") in said
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


def test_an_attack_on_a_run_that_does_not_exist_is_refused(tmp_path):
    for script in ("extraction", "distill"):
        said = refused(script, "-e", tmp_path / "runs", *STEAL, "-msg", "gone")
        assert f"{tmp_path}/runs/digits_vgg11_margin_10_gone" in said
    assert tree(tmp_path) == set()
