"""Shared by all tests: small things on the CPU, no network."""

import os
import signal

# before torch is imported, and for every process that a test starts: runs in this process and in others are compared
# bit for bit, which takes the same number of threads, and a forked child of a process with several would hang
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from owner_fixtures import bank, committed, owner  # noqa: E402, F401
from shortcuts import skip_fsync_git_and_pictures  # noqa: E402
from tiny_fit import tiny_fit  # noqa: E402

from models import outside  # noqa: E402

# A shell without job control starts its background jobs with SIGINT ignored. Processes that a test starts would
# inherit that and never see the SIGINT that the test sends them; from a process with a handler they get the default.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
def unbroken_run(tmp_path_factory):
    """The folder of a `tiny_fit` that was never interrupted, to compare others with; nobody writes to it."""
    with skip_fsync_git_and_pictures():
        return tiny_fit(tmp_path_factory.mktemp("unbroken") / "run").path
