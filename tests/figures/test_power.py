"""figures.power: ranks by hand, and the score that T1p has."""

import numpy as np

from figures import power
from utils.ownership import pvalues


def test_doubled_ranks_by_hand():
    p = np.array([[0.4, 0.1, 0.3, 0.1, 0.1]])
    allowed = np.array([[False, True, True, True, False]])
    ranks = power.doubled_ranks(p, allowed)[0]
    assert ranks[2] == 6 and ranks[1] == ranks[3] == 3  # third of three; first and second share 1.5


def test_the_first_score_is_that_of_t1p():
    p, true = np.random.default_rng(0).dirichlet(np.ones(6), 9), np.arange(9)[:, None] % 6
    assigned = (true[:, 0] + 1) % 6
    allowed = pvalues.drawn_from(p.shape, true)
    first = next(iter(power.SCORES.values()))
    assert pvalues.draw_tail(first(p, allowed), allowed, assigned) == pvalues.score_randomisation(p, assigned, true)
