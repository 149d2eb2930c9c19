"""Our steps compute what the steps of the official code compute, in fp64: rounding of fp32 can flip signs and ReLUs."""

import copy

import pytest
import torch
from comparing import apart
from small_steps import NUMBERS, K, rows_of, setting, small, watermark

from utils.attacks.losses import soft_loss
from utils.attacks.objectives import ExtractionObjective
from utils.cost import official_rendering
from utils.training.step import Step


def moved(model):
    """Largest change of a weight since `small`; buffers are left out, for the counters of batches always change."""
    return max(float((a - b).detach().abs().max()) for a, b in zip(small().parameters(), model.parameters()))


@pytest.mark.parametrize("steps", [K, 0])
def test_our_step_equals_the_official_one(steps):
    model, batches, x_q, y_q = setting()
    model, batches.dtype, x_q = model.double(), torch.float64, x_q.double()
    plain = copy.deepcopy(model)
    objective = watermark(model, x_q, y_q, steps)
    row = rows_of(batches, objective)[0]
    Step(model, objective, batches, lr=0.1, weight_decay=1e-4)(row)
    x, y = batches.batch(*row[:3])
    optimizer = official_rendering.plain_sgd(plain, 0.1, 1e-4)
    official_rendering.watermark_step(plain, optimizer, x.contiguous(), y, x_q[row[3]], y_q[row[3]], steps=steps,
                                      **NUMBERS)
    assert moved(model) > 1e-3
    assert apart(model, plain) <= 1e-9


def test_our_soft_step_equals_the_official_one():
    model, batches, _, _ = setting()
    model, batches.dtype = model.double(), torch.float64
    plain, teacher = copy.deepcopy(model), small().double().eval()
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    objective = ExtractionObjective(frozen, soft_loss, False)
    row = rows_of(batches, objective)[0]
    Step(model, objective, batches, lr=0.1, weight_decay=1e-4)(row)
    x, y = batches.batch(*row[:3])
    official_rendering.soft_step(plain, teacher, official_rendering.plain_sgd(plain, 0.1, 1e-4), x.contiguous(), y)
    assert moved(model) > 1e-3
    assert apart(model, plain) <= 1e-9
