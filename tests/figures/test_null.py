"""figures.null, smaller: labels of other secrets and beacons against models that never saw any."""

import itertools
import math

import numpy as np
import torch
from scipy import stats

from figures.null import TESTS, simulate_null, suspects_of
from utils.watermark.triggers import TriggerSet


def test_no_innocent_model_is_claimed_more_often_than_alpha():
    """300 draws of 16 labels: each share of p <= alpha is one that a rate of alpha explains."""
    true = torch.arange(16)[:, None] % 5
    triggers = TriggerSet(torch.zeros(16, 3, 32, 32, dtype=torch.uint8), true[:, 0], true, true)
    logits = np.random.default_rng(0).normal(size=(2, 16, 5))
    logits[0, np.arange(16), np.arange(16) % 5] += 3  # the good model is right where it is sure
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    found = simulate_null(triggers, suspects_of(*p), [str(i) for i in range(5)], 300)
    assert set(found) == {"C - 1", "k = 2"}
    for kind, suspects in found.items():
        assert set(suspects) == {"good", "poor", "constant", "permuted"}
        for (name, tests), test, alpha in itertools.product(suspects.items(), TESTS, (0.3, 0.1, 0.01)):
            k = int((np.array(tests[test]) <= math.log10(alpha) + 1e-4).sum())
            assert len(tests[test]) == 300 and stats.binom.sf(k - 1, 300, alpha) > 1e-4, (kind, name, test, alpha, k)
