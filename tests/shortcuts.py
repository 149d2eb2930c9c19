"""What makes small runs fast."""

import contextlib
import os

import pytest


@contextlib.contextmanager
def skip_fsync_git_and_pictures():
    """Within: the disk's promise (fsync), git's answer and the picture of the triggers, which cost most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr("utils.runs.folder.describe_process", lambda device: {"git_commit": None})
        patch.setattr("utils.ownership.commitment.draw_trigger_picture", lambda triggers, classes: b"a picture")
        yield
