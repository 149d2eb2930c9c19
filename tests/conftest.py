"""Shared by all tests: small things on the CPU, no network; runs of an owner and a bank that many tests read."""

import os
import signal

# before torch is imported, and for every process that a test starts: runs are compared bit for bit
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from hostile_files import write_good_files  # noqa: E402
from owner_runs import SETTINGS, make_run, record_of  # noqa: E402
from small_runs import skip_fsync_git_and_pictures  # noqa: E402
from tiny_fit import tiny_fit  # noqa: E402

from models import outside  # noqa: E402

# A shell without job control ignores SIGINT in its background jobs, and processes that a test starts would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def heard():
    """SIGHUP is not ignored, though the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def unnamed():
    """No command before has named a user's function: in a process of its own none would have."""
    outside.named.clear()
    yield
    outside.named.clear()


@pytest.fixture(scope="module")
def quick():
    """No fsync, no git and no picture of the triggers, for a module whose tests do not look at them."""
    with skip_fsync_git_and_pictures():
        yield


@pytest.fixture(scope="session")
@skip_fsync_git_and_pictures()
def unbroken_run(tmp_path_factory):
    """The folder of a `tiny_fit` that was never interrupted."""
    return tiny_fit(tmp_path_factory.mktemp("unbroken") / "run").path


@pytest.fixture(scope="session")
@skip_fsync_git_and_pictures()
def files(tmp_path_factory):
    """The folder of one good file of each kind; tests do not write to it."""
    return write_good_files(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="session")
@skip_fsync_git_and_pictures()
def owner(tmp_path_factory):
    """(run folder, trigger set) of an owner whose labels --seed drew."""
    return make_run(tmp_path_factory.mktemp("owner") / "run")


@pytest.fixture(scope="session")
@skip_fsync_git_and_pictures()
def committed(tmp_path_factory):
    """(run folder, trigger set) of an owner who prepared images and whose labels a beacon drew."""
    return make_run(tmp_path_factory.mktemp("committed") / "run", record=record_of())


@pytest.fixture(scope="session")
@skip_fsync_git_and_pictures()
def bank(tmp_path_factory):
    """The run folders of five benign models."""
    folder, none = tmp_path_factory.mktemp("bank"), SETTINGS | {"train_type": "none"}
    return [make_run(folder / f"b{i}", none | {"seed": 10 + i})[0] for i in range(5)]
