"""Which row of the paper stands beside a run. The expected numbers are copied from the paper's tables by hand."""

import pytest

from utils.published import CIFAR10, paper_row

ACC, TRIG, P = "accuracy %", "trigger %", "log10 p"
MARGIN = {"dataset": "cifar10", "train_type": "margin"}
ROWS = [
    (MARGIN, "Table 2", {ACC: (87.81, 0.76), TRIG: (100.0, 0.0), P: (-12, None)}),
    (MARGIN | dict(attack="hard", model="res34"), "Table 2",
     {ACC: (91.88, 0.40), TRIG: (51.33, 4.93), P: (-8, None)}),
    (MARGIN | dict(dataset="folder", classes=tuple(CIFAR10)), "Table 2",
     {ACC: (87.81, 0.76), TRIG: (100.0, 0.0), P: (-12, None)}),
    (MARGIN | dict(dataset="cifar100", attack="soft", images="cifar100"), "Table 2",
     {ACC: (67.66, 0.36), TRIG: (70.67, 7.57), P: (-7, None)}),
    (MARGIN | dict(train_type="rs", attack="soft"), "Table 2", {ACC: (88.93, 1.18), TRIG: (7.67, 4.04)}),
    (MARGIN | dict(train_type="base", attack="soft"), "Table 1", {ACC: (90.60, None), TRIG: (0.0, None)}),
    (MARGIN | dict(attack="benign"), "Table 3", {TRIG: (0.0, 0.0)}),
    (MARGIN | dict(attack="soft", model="vgg11"), "Table 4", {ACC: (86.00, 2.17), TRIG: (32.0, 7.21)}),
    (MARGIN | dict(attack="soft", images="svhn"), "Table 4", {ACC: (63.99, 3.90), TRIG: (72.0, 6.08)}),
    (MARGIN | dict(attack="distill", mixup=2), "Table 6", {ACC: (90.30, None), TRIG: (42.0, None)}),
    (MARGIN | dict(attack="margin"), "Table 8", {ACC: (84.94, 0.48), TRIG: (98.33, 0.58)}),
    (MARGIN | dict(attack="finetune ftal"), "Table 9", {ACC: (90.64, 0.34), TRIG: (82.33, 2.52)}),
]
NONE = [
    MARGIN | dict(dataset="digits"), MARGIN | dict(clean=True), MARGIN | dict(attack="prune"),
    MARGIN | dict(dataset="folder", classes=("cat", "dog")), MARGIN | dict(attack="soft", images="digits"),
    MARGIN | dict(train_type="base", attack="hard"), MARGIN | dict(train_type="base", attack="benign"),
    MARGIN | dict(dataset="cifar100", train_type="base"), MARGIN | dict(attack="hard", model="vgg11"),
    MARGIN | dict(mixup=3), MARGIN | dict(train_type="none"),
    MARGIN | dict(train_type="unheard of", attack="<b>"),
]


@pytest.mark.parametrize("run, table, numbers", ROWS)
def test_a_run_like_the_papers_has_the_papers_row(run, table, numbers):
    assert paper_row(**run) == (table, numbers)


@pytest.mark.parametrize("run", NONE)
def test_other_runs_have_none(run):
    assert paper_row(**run) == ("", {})
