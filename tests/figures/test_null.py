"""figures.null, smaller: labels of other secrets and beacons against models that never saw any."""

import itertools
import math

import numpy as np
import torch
from scipy import stats

from figures.null import TESTS, simulate_null, suspects_of
from utils.watermark.triggers import TriggerSet

CLASSES = [str(i) for i in range(5)]


def small_set(m):
    true = torch.arange(m)[:, None] % 5
    return TriggerSet(torch.zeros(m, 3, 32, 32, dtype=torch.uint8), true[:, 0], true, true)


def innocent(m, sure, seed):
    """Probabilities (m, 5) of a model that is right where it is sure."""
    logits = np.random.default_rng(seed).normal(size=(m, 5))
    logits[np.arange(m), np.arange(m) % 5] += sure
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_no_innocent_model_is_claimed_more_often_than_alpha():
    """300 draws of 16 labels: each share of p <= alpha is one that a rate of alpha explains."""
    found = simulate_null(small_set(16), suspects_of(innocent(16, 3, 0), innocent(16, 0, 1)), CLASSES, 300)
    assert set(found) == {"C - 1", "k = 2"}
    for kind, suspects in found.items():
        assert set(suspects) == {"good", "poor", "constant", "permuted"}
        for (name, tests), test, alpha in itertools.product(suspects.items(), TESTS, (0.3, 0.1, 0.01)):
            k = int((np.array(tests[test]) <= math.log10(alpha) + 1e-4).sum())
            assert len(tests[test]) == 300 and stats.binom.sf(k - 1, 300, alpha) > 1e-4, (kind, name, test, alpha, k)
