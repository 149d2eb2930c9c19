"""The order of the runs within a budget, which of them is next, and the rows that come from the additional ones."""

from pathlib import Path

import pytest

from figures.paper.commands import RunCommands
from figures.paper.plan import Waiting, next_run, ordered_steps
from figures.paper.profiles import PROFILES
from figures.paper.steps import steps_of_target
from figures.paper.table_cells import table_cells


def test_runs_come_in_the_order_of_what_they_teach():
    runs = RunCommands("paper", Path("runs"))
    steps = ordered_steps(["table2"], runs)
    assert [str(step.folder.relative_to("runs")) for step in steps[:10]] == [
        "cifar10_res34_margin_100_s0",
        "cifar10_res34_margin_100_s0/extraction_soft",
        "cifar10_res34_margin_100_s0/extraction_soft-clean",
        "cifar10_res34_base_100_s0",
        "cifar10_res34_base_100_s0/extraction_soft",
        "cifar10_res34_none_100_s0",
        "cifar10_res34_margin_100_s0/extraction_hard",
        "cifar10_res34_margin_100_s0/extraction_reg",
        "cifar10_res34_margin_100_s1",
        "cifar10_res34_margin_100_s1/extraction_soft",
    ]
    assert len(steps) == len(set(steps)) == 126 and "-tt ewe" in steps[24].command
    assert "--teacher-bn clean" in steps[2].command and "--teacher-bn" not in steps[1].command


@pytest.mark.parametrize("profile", PROFILES)
def test_every_order_has_all_runs_and_what_they_need_before_them(profile):
    runs = RunCommands(profile, Path("runs"))
    names = ["figure3", "figure8", "table7", "table2"]
    steps = ordered_steps(names, runs)
    seen = set()
    for step in steps:
        assert set(step.needs) <= seen
        seen.add(step)
    assert seen == {step for name in names for step in steps_of_target(name, runs)}


def test_rows_that_the_paper_has_not_come_from_the_control_runs():
    table = table_cells("table2", RunCommands("paper", Path("runs")))
    step, value = table["CIFAR-10 margin with clean statistics, source", "trigger %"]
    assert step(1).folder.name == "cifar10_res34_margin_100_s1"
    clean = {"trigger_hits": 9, "trigger_size": 10}
    assert value({"trigger_hits": 1, "trigger_size": 10, "clean": clean}) == 90 and value({"clean": None}) is None
    step, value = table["CIFAR-10 margin with clean statistics, soft", "accuracy %"]
    assert step(1).done.parent.name == "extraction_soft-clean" and value({"test_accuracy": 0.5}) == 50
    assert "-tt base" in table["CIFAR-10 ERM, soft", "log10 p"][0](0).command
    assert not [row for row, _ in table_cells("table2", RunCommands("smoke", Path("runs"))) if "ERM" in row]


def test_a_run_that_does_not_fit_is_passed_over_and_a_begun_one_goes_on():
    long, short = Waiting("long", 50.0), Waiting("short", 5.0)
    unknown, begun = Waiting("unknown", None), Waiting("begun", 500.0, True)
    pick = lambda *waiting, left, whole=100: next_run(list(waiting), left, whole)
    assert pick(long, short, left=60) == long
    assert pick(long, short, left=50) == long
    assert pick(long, short, left=49) == short
    assert pick(long, short, left=4) is None
    assert pick(long, short, left=49, whole=49) == long  # it never fits as a whole
    assert pick(unknown, long, short, left=49) == short
    assert pick(unknown, long, left=49) == unknown
    assert pick(long, begun, short, left=1) == begun
    assert pick(long, begun, short, left=0) is None and pick(left=9) is None
