"""Runs that the tests of the scripts look at, made once for all of them."""

import pytest
from commands import call, good
from digits_runs import BENIGN, STEAL, TRAIN
from photos import damage, photos


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A benign model, an ERM and a margin source, and the surrogates of the last."""
    folder = tmp_path_factory.mktemp("world")
    good("train", "-d", folder, "-tt", "margin", *TRAIN, "-ep", 2)
    good("train", "-d", folder, "-tt", "none", *TRAIN)
    good("train", "-d", folder, "-tt", "base", *TRAIN)
    (folder / "soft.txt").write_text(
        good("extraction", "-e", folder, *STEAL, "-at", "soft", "--benign", folder / BENIGN))
    good("extraction", "-e", folder, *STEAL, "-at", "hard", "-admsg", "_hard", "--teacher-bn", "clean")
    good("extraction", "-e", folder, *STEAL, "-at", "reg", "-admsg", "_reg", "-dmt", "vgg11")
    good("distill", "-e", folder, *STEAL, "-tt", "margin")
    return folder


@pytest.fixture(scope="session")
def own_images(tmp_path_factory):
    """A run on a user's images, some of them damaged; returns its folder and flags."""
    folder = tmp_path_factory.mktemp("folder")
    data = damage(photos(folder / "pets", n=40))
    photos(folder / "cars", parts=(".",), classes=("a", "b", "c"), n=20)
    photos(folder / "birds", parts=(".",), classes=("a", "b", "c"), n=40)
    flags = ("-dt", "folder", "--data-dir", data, "-nq", 3, "--batch-size", 16, "--width", 4, "--device", "cpu")
    flags += ("-ep", 1)
    bad = call("train", "-d", folder / "runs", *flags, "-mt", "res18", "-tt", "margin", "--trigger-batch", 4)
    assert bad.status == 2 and not (folder / "runs").exists()
    assert "3 of 163 images" in bad.err and "train/cat/cut.jpg" in bad.err
    flags += ("--skip-bad-images",)
    out = good("train", "-d", folder / "runs", *flags, "-mt", "res18", "-tt", "margin", "--trigger-batch", 4)
    assert "skipped 3 unreadable images" in out
    return folder, flags
