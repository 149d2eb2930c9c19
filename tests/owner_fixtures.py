"""An owner's run and a bank of benign models, made once for all tests that ask for them."""

import pytest
from owner_runs import SETTINGS, make_run
from shortcuts import skip_fsync_git_and_pictures


@pytest.fixture(scope="session")
def owner(tmp_path_factory):
    """(run folder, trigger set) of the owner; tests do not write to it."""
    with skip_fsync_git_and_pictures():
        return make_run(tmp_path_factory.mktemp("owner") / "run")


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """The run folders of five benign models."""
    folder = tmp_path_factory.mktemp("bank")
    none = SETTINGS | {"train_type": "none"}
    with skip_fsync_git_and_pictures():
        return [make_run(folder / f"b{i}", none | {"seed": 10 + i}, committed=False)[0] for i in range(5)]
