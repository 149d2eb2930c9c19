"""`python started_make.py FLAG ...`: `python -m figures.make` with a profile `tiny` of small runs."""

import shlex
import sys

import pytest
from commands import good

from figures import make
from figures.cells import WATERMARKS
from figures.runs import PROFILES

TINY = PROFILES["smoke"]._replace(flags="--width 4 --train-size 128 --batch-size 64 -ep 6 --device cpu", m=8,
                                  watermark="--steps 2")
BENIGN, MARGIN = (f"experiments/tiny/digits_res18_{kind}_8_s0" for kind in ("none", "margin"))


def set_tiny(monkeypatch) -> None:
    """Add the profile `tiny`, and take the rivals out of the tables, so that table3 needs two runs only."""
    monkeypatch.setitem(PROFILES, "tiny", TINY)
    monkeypatch.setattr("figures.cells.WATERMARKS", {"margin": WATERMARKS["margin"]})


def run_here(step) -> None:
    """Run a step's script in this process, which saves starting torch."""
    good(*shlex.split(step.command.removeprefix("python ").replace(".py", "", 1)))


if __name__ == "__main__":
    set_tiny(pytest.MonkeyPatch())
    make.main(sys.argv[1:])
