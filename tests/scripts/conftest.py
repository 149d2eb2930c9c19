"""Runs that the tests of the scripts look at, made once for all of them."""

import pytest
from commands import good
from small_runs import BENIGN, STEAL, TRAIN


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
    good("extraction", "-e", folder, *STEAL, "-at", "reg", "-admsg", "_reg", "-dmt", "res18")
    good("distill", "-e", folder, *STEAL, "-tt", "margin")
    return folder
