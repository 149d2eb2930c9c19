"""Our steps compute what the steps of the official code compute."""

import copy

import pytest
from comparing import apart
from small_steps import NUMBERS, K, rows_of, setting, small, watermark

from utils.attacks.losses import soft_loss
from utils.attacks.objectives import ExtractionObjective
from utils.cost import official_rendering
from utils.training.step import Step


@pytest.mark.parametrize("steps", [K, 0])
def test_our_step_equals_the_official_one(steps):
    model, batches, x_q, y_q = setting()
    plain = copy.deepcopy(model)
    objective = watermark(model, x_q, y_q, steps)
    row = rows_of(batches, objective)[0]
    Step(model, objective, batches, lr=0.1, weight_decay=1e-4)(row)
    x, y = batches.batch(*row[:3])
    optimizer = official_rendering.plain_sgd(plain, 0.1, 1e-4)
    official_rendering.watermark_step(plain, optimizer, x.contiguous(), y, x_q[row[3]], y_q[row[3]], steps=steps,
                                      **NUMBERS)
    assert apart(small(), model) > 1e-3
    assert apart(model, plain) <= 1e-6


def test_our_soft_step_equals_the_official_one():
    model, batches, _, _ = setting()
    plain, teacher = copy.deepcopy(model), small().eval()
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    objective = ExtractionObjective(frozen, soft_loss, False)
    row = rows_of(batches, objective)[0]
    Step(model, objective, batches, lr=0.1, weight_decay=1e-4)(row)
    x, y = batches.batch(*row[:3])
    official_rendering.soft_step(plain, teacher, official_rendering.plain_sgd(plain, 0.1, 1e-4), x.contiguous(), y)
    assert apart(small(), model) > 1e-3
    assert apart(model, plain) <= 1e-6
