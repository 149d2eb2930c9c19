"""An owner's runs and a bank of benign models, made once for all tests that ask for them."""

import pytest
from owner_runs import SETTINGS, make_run, record_of
from shortcuts import skip_fsync_git_and_pictures


@pytest.fixture(scope="session")
def owner(tmp_path_factory):
    """(run folder, trigger set) of an owner whose labels --seed drew; tests do not write to it."""
    with skip_fsync_git_and_pictures():
        return make_run(tmp_path_factory.mktemp("owner") / "run")


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """(run folder, trigger set) of an owner who prepared images and whose labels a beacon drew; nobody writes to it."""
    with skip_fsync_git_and_pictures():
        return make_run(tmp_path_factory.mktemp("committed") / "run", record=record_of())


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """The run folders of five benign models."""
    folder = tmp_path_factory.mktemp("bank")
    none = SETTINGS | {"train_type": "none"}
    with skip_fsync_git_and_pictures():
        return [make_run(folder / f"b{i}", none | {"seed": 10 + i})[0] for i in range(5)]
