"""figures.power: ranks by hand, and the score that T1p has."""

import numpy as np

from figures import power


def test_doubled_ranks_by_hand():
    p = np.array([[0.4, 0.1, 0.3, 0.1, 0.1]])
    allowed = np.array([[False, True, True, True, False]])
    ranks = power.doubled_ranks(p, allowed)[0]
    assert ranks[2] == 6 and ranks[1] == ranks[3] == 3  # third of three; first and second share 1.5
