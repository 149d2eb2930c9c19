"""The verdict over all tests, and the sequential test."""

import numpy as np
import pytest
import torch
from owner_runs import CLASSES, replace

from utils.answers.answers import Answers
from utils.ownership.commitment import Owner, read_owner
from utils.ownership.verdict import OwnershipCase
from utils.watermark.triggers import TriggerSet

pytestmark = pytest.mark.usefixtures("quick")


def test_a_trigger_set_that_also_convicts_benign_models_is_refused(owner):
    _, triggers = owner
    copy = Answers(triggers.labels.numpy(), None)
    case = OwnershipCase(read_owner(owner[0]), [copy], 1e-3)
    assert not case.decide(copy)["holds"] and "benign" in case.decide(copy)["why"]


def test_stopping_early_does_not_lift_a_refusal(owner):

    _, triggers = owner
    copy = Answers(triggers.labels.numpy(), None)
    for bank, holds in (([copy], False), ([], True)):
        case = OwnershipCase(read_owner(owner[0]), bank, 1e-3)
        report = case.report(copy, stopped=True)
        assert report["sequential"]["decision"] == "claim" and report["decision"]["holds"] is holds


def test_error_rates_of_the_sequential_test():
    """Under H0 it claims no more often than alpha; at H1 it gives up no more often than beta."""
    m, rng = 400, np.random.default_rng(0)
    true = torch.from_numpy(rng.integers(0, 10, (m, 1)))
    many = TriggerSet(torch.zeros(m, 3, 32, 32, dtype=torch.uint8), torch.zeros(m), true, true)
    many = replace(many, labels=(true[:, 0] + torch.from_numpy(rng.integers(1, 10, m))) % 10)
    case = OwnershipCase(Owner(many, CLASSES, [], None, None, True), [], 0.05)
    claimed = {}
    for rate in (1 / 9, 0.5):
        ends = []
        for _ in range(400):
            wrong = (many.labels.numpy() + 1 + (many.labels.numpy() + 1 == true[:, 0].numpy())) % 10
            labels = np.where(rng.random(m) < rate, many.labels.numpy(), wrong)
            ends.append(case.sequence(Answers(labels, None), range(m))["decision"] == "claim")
        claimed[rate] = np.mean(ends)
    assert claimed[1 / 9] <= 0.05 + 0.02 and claimed[0.5] >= 0.95 - 0.02
