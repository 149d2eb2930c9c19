"""What makes runs last half a second: flags, folder names on digits, and what is skipped; many tests share them."""

import contextlib
import os

import pytest

DATA = ("-dt", "digits", "-nq", 10, "--train-size", 128, "--batch-size", 64, "--width", 2, "--device", "cpu")
TRAIN = (*DATA, "-mt", "vgg11", "--trigger-batch", 4, "--steps", 2, "-ep", 1)
STEAL = (*DATA, "-tmt", "vgg11", "-dmt", "vgg11", "-ep", 1)
SOURCE, BASE, BENIGN = (f"digits_vgg11_{kind}_10_" for kind in ("margin", "base", "none"))


@contextlib.contextmanager
def skip_fsync_git_and_pictures():
    """Within: the disk's promise (fsync), git's answer and the picture of the triggers, which cost most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr("utils.runs.folder.describe_process", lambda device: {"git_commit": None})
        patch.setattr("utils.ownership.commitment.draw_trigger_picture", lambda triggers, classes: b"a picture")
        yield
