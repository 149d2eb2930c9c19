"""For the tests of `figures.make`: an empty folder to run in."""

import pytest


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder, since runs and data have relative names."""
    monkeypatch.chdir(tmp_path)
