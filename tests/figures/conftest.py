"""For the tests of `figures.make`: a profile of small runs, and an empty folder to run in."""

import pytest
from started_make import set_tiny, start, status_of


@pytest.fixture
def tiny(monkeypatch):
    """The profile `tiny`, without the rivals, so that table3 needs two runs only."""
    set_tiny(monkeypatch)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a `figures.make table3 --profile tiny` that was never interrupted; nobody writes to it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_tiny(monkeypatch)
        assert status_of(start(folder)) == 0, (folder / "err").read_text()
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder, since runs and data have relative names."""
    monkeypatch.chdir(tmp_path)
