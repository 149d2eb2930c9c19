"""What a copy must keep to be claimed, against cases that can be worked out."""

import numpy as np
import pytest

from figures.needed import claimed_share, needed_table, simulated_copies, smallest_shift


def copies(rows):
    return np.array(rows, float)


def test_eleven_of_eleven_coins_are_needed_and_enough():
    """2^-11 is the first power below 0.0005; one miss of eleven is 12 * 2^-11."""
    for m, claimed in ((10, 0.0), (11, 1.0)):
        sure = copies([[[1, 0]] * m])
        assert claimed_share(sure, "T1") == claimed_share(sure, "T1p") == claimed
    assert claimed_share(copies([[[1, 0]] * 10 + [[0, 1]]]), "T1") == 0
    # T1p: the label that was not drawn is ahead once, by nearly nothing: 2 of 2^12 sums are as large
    assert claimed_share(copies([[[1, 0]] * 11 + [[0, 0.125]]]), "T1p") == 1


def test_innocent_models_are_not_claimed_and_more_triggers_need_less():
    assert claimed_share(simulated_copies(30, 2, 0.0, 100), "T1p") <= 0.01
    few, many = (smallest_shift(m, 2, "T1p", 20) for m in (20, 80))
    assert many["kept"] < few["kept"] < 1 and few["answered_as_drawn"] == pytest.approx((1 + few["kept"]) / 2, abs=1e-3)
    rows = [{"m": m, "k": k, "test": test, "kept": 0.5, "answered_as_drawn": 0.75}
            for m in (50, 100, 200) for k in (2, 3) for test in ("T1", "T1p")]
    assert "| T1p, k = 3 | 50 % (38 of 50) | 50 % (75 of 100) | 50 % (150 of 200) |" in needed_table(rows)
