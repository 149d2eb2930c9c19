"""Randomised smoothing: the certificate."""

import copy

import numpy as np
import pytest
import torch
from comparing import equal_parameters
from small_steps import small

from utils.rivals.certificate import certified_radius, certify, order_index, smoothed_accuracies
from utils.watermark.triggers import TriggerSet

TABLE = {
    1000: {.2: 384, .4: 309, .6: 241, .8: 181, 1.0: 131, 1.2: 91, 1.4: 60, 1.6: 38, 1.8: 22, 2.0: 12, 2.5: 0, 3: None},
    100: {.2: 30, .4: 23, .6: 16, .8: 11, 1.0: 7, 1.2: 4, 1.4: 1, 1.6: 0, 1.8: None, 2.0: None},
}


@pytest.mark.parametrize("n", TABLE)
def test_order_statistic(n):
    assert {eps: order_index(n, eps, 1.0, 0.99) for eps in TABLE[n]} == TABLE[n]
    assert order_index(n, 0.5, 0.5, 0.99) == order_index(n, 1.0, 1.0, 0.99)
    assert order_index(n, 1e5, 1.0, 0.99) is None


def test_toy_certificate_is_tight():
    """The accuracy 1[theta > 0] at theta = 1.5: its smoothed median falls from 1 to 0 at eps = 1.5."""
    rng, certified = np.random.default_rng(0), {}
    for n, grid in ((10_000, (1.4, 1.6)), (1000, (1.2, 1.4))):
        found = [certify(np.sort(rng.normal(1.5, 1, n) > 0), grid, 1.0, 0.99) for _ in range(200)]
        certified[n] = {eps: np.mean([f[eps] == 1 for f in found]) for eps in grid}
    assert certified[10_000] == {1.4: 1, 1.6: 0}
    assert certified[1000][1.2] == 1 and 0.1 < certified[1000][1.4] < 0.33


def triggers_of(images, labels):
    unknown = torch.zeros(len(labels), 0, dtype=torch.long)
    return TriggerSet(images, labels, unknown, unknown)


def test_answers_that_are_not_finite_count_for_no_class():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5))
    torch.nn.init.constant_(model[1].bias, torch.nan)
    triggers = triggers_of(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    found, shares = smoothed_accuracies(model, triggers, 1.0, 2, 0)
    assert found.tolist() == [0, 0] and not shares.any()  # not class 0, which argmax would choose


def test_smoothed_accuracy_is_of_noisy_copies():
    model = small().eval()
    before = copy.deepcopy(model)
    images, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 5, (6,))
    triggers = triggers_of(images, labels)
    found, shares = smoothed_accuracies(model, triggers, 1e-9, 3, 0)
    assert equal_parameters(model, before)
    assert found.tolist() == [int((model(images / 255).argmax(1) == labels).sum()) / 6] * 3
    found, shares = smoothed_accuracies(model, triggers, 1.0, 20, 0)
    assert found.tolist() == sorted(found.tolist()) and shares.sum(1) == pytest.approx(np.ones(20))
    # an untrained network is nearly constant under such noise: the pitfall that the histogram is there to show
    assert shares.max(1).mean() > 0.8 and len(np.unique(shares.argmax(1))) > 1


def test_the_radius_is_where_the_bound_beats_the_controls():
    bounds = {0.2: 0.9, 0.4: 0.5, 0.6: 0.1, 0.8: None}
    assert [certified_radius(bounds, bar) for bar in (0.0, 0.1, 0.5, 0.9)] == [0.6, 0.4, 0.2, None]
