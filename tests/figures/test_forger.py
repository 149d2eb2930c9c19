"""figures.forger on innocent models of a few lines."""

import math

import pytest
import torch
from scipy.stats import binom

from figures.forger import forge_beacon, forge_seeds
from utils.data.sets import load_data
from utils.watermark.triggers import draw_triggers


class OneLabel(torch.nn.Module):
    """Answers the same class to every image."""

    def __init__(self, label):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.eye(10)[label])

    def forward(self, x):
        return self.logits.expand(len(x), 10)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", "unused")


def test_the_best_seed_is_the_luckiest_of_those_tried(digits):
    """The suspect answers 3 to everything: T1 by hand from the binomial of the answers that are not the true label."""
    found = forge_seeds(OneLabel(3), digits, 60)
    best = 0.0
    for seed in range(60):
        triggers, _ = draw_triggers(digits.held_out, 40, 1, 10, seed)
        wrong = int((triggers.true_labels[:, 0] != 3).sum())
        hits = int((triggers.labels == 3).sum())
        if hits > 2:
            best = min(best, math.log10(binom.sf(hits - 1, wrong, 1 / 9)))
    assert found["log10_p"] == pytest.approx(best) and best < -1
    assert found["stranger_log10_p"] is None and not found["stranger"]  # labels of a seed are none for a stranger


def test_many_image_commitments_win_no_more_than_their_number(digits):
    found = forge_beacon(OneLabel(3), digits)
    assert -3.5 < found["log10_p"] == found["stranger_log10_p"] < 0
