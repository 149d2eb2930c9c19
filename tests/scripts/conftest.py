"""A benign model and a source that many tests of this folder name; nobody writes to them."""

import pytest
from commands import good
from small_runs import BENIGN, SOURCE, TRAIN, skip_fsync_git_and_pictures


def trained(kind, name):
    """A fixture: the run folder of a model of -tt `kind`, alone in a folder."""
    @pytest.fixture(scope="session")
    @skip_fsync_git_and_pictures()
    def run(tmp_path_factory):
        folder = tmp_path_factory.mktemp(kind)
        good("train", "-d", folder, "-tt", kind, *TRAIN)
        return folder / name
    return run


benign, source = trained("none", BENIGN), trained("margin", SOURCE)
