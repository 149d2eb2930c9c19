"""For the tests of `figures.make`: a profile of small runs, and an empty folder to run in."""

import pytest

from figures.paper.profiles import PROFILES
from figures.paper.table_cells import WATERMARKS

TINY = PROFILES["smoke"]._replace(flags="--width 4 --train-size 128 --batch-size 64 -ep 5 --device cpu", m=8)


@pytest.fixture
def tiny(monkeypatch):
    """The profile `tiny`, without the rivals, so that table3 needs two runs only."""
    monkeypatch.setitem(PROFILES, "tiny", TINY)
    monkeypatch.setattr("figures.paper.table_cells.WATERMARKS", {"margin": WATERMARKS["margin"]})


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder, since runs and data have relative names."""
    monkeypatch.chdir(tmp_path)
