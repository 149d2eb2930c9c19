"""For the tests of `figures.make`: a profile of small runs, and an empty folder to run in."""

import pytest
from started_make import set_tiny


@pytest.fixture
def tiny(monkeypatch):
    """The profile `tiny` of started_make.py."""
    set_tiny(monkeypatch)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder, since runs and data have relative names."""
    monkeypatch.chdir(tmp_path)
