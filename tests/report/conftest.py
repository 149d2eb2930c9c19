"""A source with a tag that names its seed, and two attacks on it, made once for all tests of this folder."""

import pytest
from commands import good
from shortcuts import skip_fsync_git_and_pictures
from small_runs import DATA, STEAL, TRAIN

SEED = 7391
TAGS = ("-msg", f"s{SEED}", "--seed", SEED)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """The run folder of the source; tests do not write to it."""
    folder = tmp_path_factory.mktemp("runs")
    where = ("-d", folder)
    with skip_fsync_git_and_pictures():
        good("train", *TRAIN, *where, "-tt", "none", *TAGS)
        benign = ("--benign", folder / f"digits_vgg11_none_10_s{SEED}")
        good("train", *TRAIN, *where, *TAGS, *benign)
        good("extraction", *STEAL, *where, *TAGS, "-at", "hard", "-admsg", f"_s{SEED}")
        good("extraction", *DATA, *where, *TAGS, "-tmt", "vgg11", "-at", "quantize", "-admsg", "_bits")
    return folder / f"digits_vgg11_margin_10_s{SEED}"
