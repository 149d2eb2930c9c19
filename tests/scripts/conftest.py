"""A benign model and a source that many tests of this folder name; nobody writes to them."""

import pytest
from commands import good
from shortcuts import skip_fsync_git_and_pictures
from small_runs import BENIGN, SOURCE, TRAIN


@pytest.fixture(scope="session")
@skip_fsync_git_and_pictures()
def benign(tmp_path_factory):
    """The run folder of a model without a watermark."""
    folder = tmp_path_factory.mktemp("benign")
    good("train", "-d", folder, "-tt", "none", *TRAIN)
    return folder / BENIGN


@pytest.fixture(scope="session")
@skip_fsync_git_and_pictures()
def source(tmp_path_factory):
    """The run folder of a margin source, alone in a folder."""
    folder = tmp_path_factory.mktemp("source")
    good("train", "-d", folder, "-tt", "margin", *TRAIN)
    return folder / SOURCE
