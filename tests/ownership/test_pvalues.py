"""T1 to T4 and the p-values of subsets against worked numbers, enumeration and scipy, up to the ends of the scale."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from utils.ownership import pvalues


def test_binomial():
    assert pvalues.binomial(2, 3, 0.1) == pytest.approx(math.log10(3 * 0.01 * 0.9 + 0.001))  # by hand
    assert pvalues.binomial(0, 5, 0.3) == 0.0 and pvalues.binomial(0, 0, 0.3) == 0.0
    for k in range(1, 101):
        assert pvalues.binomial(k, 100, 1 / 9) == pytest.approx(math.log10(stats.binom.sf(k - 1, 100, 1 / 9)), abs=1e-9)
    # the smallest k with p <= .05, .01, 1e-4, 1e-6 of 100
    for k, alpha in zip((17, 20, 25, 29), (0.05, 0.01, 1e-4, 1e-6)):
        assert pvalues.binomial(k, 100, 1 / 9) <= math.log10(alpha) < pvalues.binomial(k - 1, 100, 1 / 9)
    # far below the smallest float, where p itself would underflow
    assert pvalues.binomial(1000, 1000, 0.01) == pytest.approx(-2000)
    assert pvalues.binomial(100_000, 100_000, 1 / 9) == pytest.approx(-95424.25, abs=0.1)


def t1(hits, wrong, n, classes=10, **more):
    """T1 of n answers, `wrong` of them outside the true labels and `hits` of these on the assigned ones."""
    true = np.arange(n) % classes
    predicted, assigned = true.copy(), (true + 1) % classes
    predicted[:wrong] = (true[:wrong] + 2) % classes
    predicted[:hits] = assigned[:hits]
    return pvalues.label_randomisation(predicted, assigned, true[:, None], classes, **more)


def test_t1_worked_numbers():
    assert t1(8, 12, 100) == pvalues.binomial(8, 12, 1 / 9)
    assert t1(8, 12, 100, conservative=True) == pvalues.binomial(8, 100, 1 / 9)
    assert t1(3, 35, 100, classes=100) == pvalues.binomial(3, 35, 1 / 99)
    assert t1(2, 2, 2) == pytest.approx(-2 * math.log10(9))  # by hand: (1/9)^2
    assert t1(0, 0, 50) == 0.0 and t1(0, 50, 50) == 0.0
    # with two classes every wrong answer is the only other label: no evidence, and no nan
    assert t1(20, 20, 20, classes=2) == 0.0 and t1(20, 20, 40, classes=2, conservative=True) == 0.0


def test_t1_mixup_counts_the_labels_that_could_be_drawn():
    """Two true labels leave 8 of 10, two equal ones 9; 1/8, the larger chance, bounds both."""
    true = np.array([[0, 1], [2, 2]])
    assert pvalues.label_randomisation([5, 6], [5, 6], true, 10) == pytest.approx(2 * math.log10(1 / 8))
    # an answer that is one of the true labels is no trial: one trial, one hit
    assert pvalues.label_randomisation([1, 6], [5, 6], true, 10) == pytest.approx(math.log10(1 / 8))


def test_t1_with_candidates_by_hand():
    """Of the answers 0, 3, 5, 7, 1 the first four are candidates, W = 4, and three of them hit."""
    true, assigned = np.array([[0], [3], [9], [9], [1]]), [0, 3, 4, 7, 8]
    pairs = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]])
    p = lambda predicted, **more: 10 ** pvalues.label_randomisation(predicted, assigned, true, 10, candidates=pairs,
                                                                    **more)
    assert p([0, 3, 5, 7, 1]) == pytest.approx(5 / 16)
    assert p([0, 3, 5, 7, 1], conservative=True) == pytest.approx(1 / 2)
    assert p(assigned) == pytest.approx(1 / 32) and p([1, 2, 5, 6, 9]) == 1
    assert p([9, 9, 9, 9, 1]) == 1  # no answer is a candidate
    assert p([0, 3, 5, 7, -1]) == pytest.approx(1 / 2) == p([0, 3, 5, 7, 9])  # a missing answer is a miss: W = 5
    # of four candidates: W = 3 and two hits of probability 1/4, 3 * (1/4)^2 * 3/4 + (1/4)^3 = 10 / 64
    four = pvalues.label_randomisation([0, 1, 2, 9], [0, 1, 3, 2], np.zeros((4, 0)), 10, candidates=[[0, 1, 2, 3]] * 4)
    assert 10**four == pytest.approx(10 / 64)


@pytest.mark.parametrize("c", [0, 2, 3])
def test_t1_is_exact_over_all_draws(c):
    """3 triggers of c of 4 classes, or of all but the true one: every suspect, every draw. P(p <= a) = a at each p."""
    candidates = np.array([[0, 1, 2], [1, 3, 2], [3, 0, 1]])[:, :c]
    true = np.array([[0], [1], [2]])
    draws = candidates.tolist() if c else [[1, 2, 3], [0, 2, 3], [0, 1, 3]]
    for predicted in itertools.product(range(4), repeat=3):
        p = np.array([10 ** pvalues.label_randomisation(predicted, assigned, true, 4, candidates=candidates)
                      for assigned in itertools.product(*draws)])
        assert len(p) == (c or 3) ** 3
        for alpha in set(p.tolist()):
            assert np.mean(p <= alpha * (1 + 1e-9)) == pytest.approx(alpha)


S = (0.99, 0.97, 0.98, 0.40, 0.95, 0.10, 0.99, 0.96, 0.90, 0.85)
B = (0.01, 0.02, 0, 0.05, 0.01, 0.02, 0, 0.03, 0.01, 0.02)


def test_t3_worked_example():
    """Differences of mean 0.792 and deviation 0.3143: t = 7.968 with 9 degrees of freedom."""
    assert 10 ** pvalues.paired_t(S, B) == pytest.approx(1.1426e-5, rel=1e-4)
    assert pvalues.paired_t(S, B) == pytest.approx(math.log10(stats.ttest_rel(S, B, alternative="greater").pvalue))
    assert 10 ** pvalues.paired_t(B, S) == pytest.approx(1 - 1.1426e-5, abs=1e-6)  # one-sided
    bank = np.array([B, np.add(B, 0.04), np.subtract(B, 0.04)])  # of which the mean counts
    assert pvalues.paired_t(S, bank) == pytest.approx(pvalues.paired_t(S, B), abs=1e-9)
    assert 10 ** pvalues.paired_t([0.2, 0.4], [0.4, 0.2]) == pytest.approx(0.5)
    assert pvalues.paired_t([0.3, 0.3], [0.3, 0.3]) == 0


def test_nothing_extreme_becomes_zero_or_infinite():
    perfect = pvalues.paired_t(np.ones(100), np.zeros(100))
    assert math.isfinite(perfect) and perfect < -100
    assert math.isfinite(pvalues.subset(np.ones(100), np.zeros(100)))


def test_t4_rank_t2_of_a_bank_that_always_hits_and_the_smaller_of_two_doubled():
    assert pvalues.rank(5, range(-19, 0)) == pytest.approx(math.log10(0.05))  # the best 19 models allow
    assert pvalues.rank(3, [1, 2, 3, 4]) == pytest.approx(math.log10(3 / 5))  # ties count against the claim
    assert pvalues.benign_rate(100, 100, 300, 300) == 0.0  # a bank that always hits proves nothing
    assert pvalues.bonferroni(-4.0, -1.0) == pytest.approx(-4 + math.log10(2))
    assert pvalues.bonferroni(-4.0, None) == -4.0 and pvalues.bonferroni(-0.1, -0.2) == 0.0
    assert pvalues.bonferroni(None) is None


def test_harmonic_mean():
    assert 10 ** pvalues.harmonic_mean([-3, -2, -1]) == pytest.approx(3 / 1110)
    assert pvalues.harmonic_mean([-200, -300, -250]) == pytest.approx(math.log10(3) - 300, abs=1e-9)
    s, b = np.random.default_rng(0).random((2, 10))
    assert pvalues.subset(s, b) == pytest.approx(pvalues.paired_t(s, b), abs=1e-9)  # of all 10, 100 times


def log10_p(u, v, seed=0, m=None, repeats=1, **more):
    return pvalues.subset_pvalues(u, v, m or len(u), repeats, np.random.default_rng(seed), **more)


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
@pytest.mark.parametrize("paired", [False, True])
def test_subset_p_values_equal_scipys(paired, alternative):
    rng, picks = np.random.default_rng(0), np.random.default_rng(5)
    u, v = rng.normal(0.3, 1, 12), rng.normal(0, 3, 12)
    test = stats.ttest_rel if paired else lambda a, b, **more: stats.ttest_ind(a, b, equal_var=False, **more)
    for found in log10_p(u, v, 5, 7, 6, paired=paired, alternative=alternative):
        pick = picks.choice(12, 7, replace=False)
        assert 10**found == pytest.approx(test(u[pick], v[pick], alternative=alternative).pvalue)


@pytest.mark.parametrize("changed", [
    {"predicted": [[1], [2]]}, {"predicted": [1]}, {"predicted": [1, 3]}, {"predicted": [1, -2]},
    {"predicted": [1.0, 2.0]}, {"assigned": [[1], [2]]}, {"assigned": [1]}, {"assigned": [1, -1]},
    {"assigned": [1, 3]}, {"true": [0, 0]}, {"true": [[0.0], [0.0]]}, {"true": [[0], [3]]}, {"true": [[0]]},
    {"candidates": [[1, 5], [1, 2]]},
])
def test_arrays_of_another_shape_or_kind_give_no_p_value(changed):
    good = {"predicted": [1, 2], "assigned": [1, 2], "true": [[0], [0]], "classes": 3}
    assert pvalues.label_randomisation(**good) == pytest.approx(math.log10(1 / 4))
    with pytest.raises(ValueError, match="whole numbers"):
        pvalues.label_randomisation(**good | changed)


def test_t1p_takes_no_logits():
    for scores in (np.log([[0.2, 0.5, 0.3]]), np.array([[0.2, -0.1, 0.9]]), np.ones(3), [[np.nan, 0.5, 0.5]]):
        with pytest.raises(ValueError, match="of logits take the softmax"):
            pvalues.score_randomisation(scores, [1], [[0]])
    probabilities = torch.tensor([[0.2, 0.5, 0.3]])  # torch's, too: the better of two labels
    assert pvalues.score_randomisation(probabilities, torch.tensor([1]), torch.tensor([[0]])) == pytest.approx(
        math.log10(1 / 2))
