"""The p-values T1 to T4 against worked numbers, tables and scipy, up to the ends of the scale."""

import math

import numpy as np
import pytest
from scipy import stats

from utils.ownership import pvalues

# log10 P(Bin(100, p0) >= k)
HITS = (3, 8, 20, 27, 36, 40, 51, 63, 73, 82, 100)
TABLE = {
    1 / 9: (-0.0, -0.1, -2.2, -5.0, -10.2, -13.0, -22.1, -34.4, -46.7, -59.7, -95.4),
    1 / 10: (-0.0, -0.1, -2.7, -5.9, -11.5, -14.5, -24.2, -37.1, -49.9, -63.3, -100.0),
    0.05: (-0.1, -0.9, -7.0, -12.4, -20.9, -25.2, -38.4, -55.2, -71.3, -87.6, -130.1),
    0.02: (-0.5, -3.0, -13.9, -22.2, -34.4, -40.3, -58.1, -79.8, -100.0, -120.0, -169.9),
    0.01: (-1.1, -5.1, -19.6, -30.0, -45.0, -52.1, -73.2, -98.6, -121.8, -144.6, -200.0),
}
CRITICAL = {  # smallest k of 100 with p <= .05, .01, 1e-4, 1e-6
    1 / 9: (17, 20, 25, 29), 0.1: (16, 19, 24, 28), 0.05: (10, 12, 16, 19), 0.02: (6, 7, 10, 12), 0.01: (4, 5, 7, 9),
}


@pytest.mark.parametrize("p0", TABLE)
def test_binomial_table(p0):
    for k, published in zip(HITS, TABLE[p0]):
        assert pvalues.binomial(k, 100, p0) == pytest.approx(published, abs=0.0501), (p0, k)


@pytest.mark.parametrize("p0", CRITICAL)
def test_critical_hits(p0):
    for k, alpha in zip(CRITICAL[p0], (0.05, 0.01, 1e-4, 1e-6)):
        assert pvalues.binomial(k, 100, p0) <= math.log10(alpha) < pvalues.binomial(k - 1, 100, p0)


def test_binomial_by_hand():
    assert pvalues.binomial(2, 2, 0.5) == pytest.approx(math.log10(1 / 4))
    assert pvalues.binomial(1, 2, 0.5) == pytest.approx(math.log10(3 / 4))
    assert pvalues.binomial(2, 3, 0.1) == pytest.approx(math.log10(3 * 0.01 * 0.9 + 0.001))
    assert pvalues.binomial(0, 5, 0.3) == 0.0 and pvalues.binomial(0, 0, 0.3) == 0.0
    for n in (1, 7, 40):
        for k in range(1, n + 1):
            exact = math.log10(stats.binom.sf(k - 1, n, 0.3))
            assert pvalues.binomial(k, n, 0.3) == pytest.approx(exact, abs=1e-9)


def suspect(hits, wrong, n, classes=10):
    """Answers with `wrong` of n outside the true labels and `hits` of these on the assigned ones."""
    true = np.arange(n) % classes
    assigned = (true + 1) % classes
    predicted = true.copy()
    predicted[:wrong] = (true[:wrong] + 2) % classes
    predicted[:hits] = assigned[:hits]
    return predicted, assigned, true[:, None], classes


def t1(hits, wrong, n, classes=10, **more):
    return pvalues.label_randomisation(*suspect(hits, wrong, n, classes), **more)


def test_t1_worked_numbers():
    assert 10 ** t1(51, 60, 100) == pytest.approx(1.1e-39, rel=0.05)
    assert 10 ** t1(8, 12, 100) == pytest.approx(7.6e-6, rel=0.01)
    assert 10 ** t1(8, 100, 100) == pytest.approx(0.88, abs=0.005)
    assert 10 ** t1(8, 12, 100, conservative=True) == pytest.approx(0.88, abs=0.005)
    assert 10 ** t1(2, 2, 100) == pytest.approx(0.0123, abs=5e-5)
    assert 10 ** t1(3, 35, 100, classes=100) == pytest.approx(0.0053, abs=5e-5)
    assert t1(100, 100, 100) == pytest.approx(-95.42, abs=0.005)
    assert t1(2, 2, 2) == pytest.approx(-2 * math.log10(9))  # by hand: (1/9)^2


def test_t1_without_answers_outside_or_without_hits_says_nothing():
    assert t1(0, 0, 50) == 0.0
    assert t1(0, 50, 50) == 0.0


def test_t1_with_two_classes_says_nothing():
    """Every wrong answer is the only other label: no evidence, and no nan."""
    assert t1(20, 20, 20, classes=2) == 0.0
    assert t1(20, 20, 40, classes=2, conservative=True) == 0.0


def test_t1_monotone():
    values = [t1(k, 40, 100) for k in range(41)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 41
    values = [t1(5, wrong, 100) for wrong in range(5, 101)]
    assert values == sorted(values)
    for wrong in (5, 20, 60, 100):
        assert t1(5, wrong, 100) <= t1(5, wrong, 100, conservative=True)


def test_t1_mixup_counts_the_labels_that_could_be_drawn():
    """Two true labels leave 8 of 10, two equal ones 9; 1/8, the larger chance, bounds both."""
    true = np.array([[0, 1], [2, 2]])
    log10_p = pvalues.label_randomisation([5, 6], [5, 6], true, 10)
    assert log10_p == pytest.approx(2 * math.log10(1 / 8))
    # an answer that is one of the true labels is no trial: one trial, one hit
    assert pvalues.label_randomisation([1, 6], [5, 6], true, 10) == pytest.approx(math.log10(1 / 8))


def test_t1_is_valid_under_its_null():
    """Labels drawn at random against a fixed predictor that is right on 64 %: P(p <= alpha) <= alpha."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, 100)
    right = np.arange(100) < 64
    predicted = np.where(right, true, (true + rng.integers(1, 10, 100)) % 10)
    values = []
    for _ in range(6000):
        assigned = (true + rng.integers(1, 10, 100)) % 10
        values.append(pvalues.label_randomisation(predicted, assigned, true[:, None], 10))
    values = 10 ** np.array(values)
    for alpha, expected in ((0.05, 0.034), (0.01, 0.007)):
        share = (values <= alpha).mean()
        assert share <= alpha and share == pytest.approx(expected, abs=0.012)


def test_the_official_label_sampler_is_uniform_too():
    """Redrawing until the label differs is uniform over the wrong ones, so the test holds for it as well."""
    rng = np.random.default_rng(1)
    true = rng.integers(0, 10, 4000)
    drawn = rng.integers(0, 10, 4000)
    while (drawn == true).any():
        drawn = np.where(drawn == true, rng.integers(0, 10, 4000), drawn)
    counts = np.bincount((drawn - true) % 10, minlength=10)
    assert counts[0] == 0 and stats.chisquare(counts[1:]).pvalue > 1e-3


def test_t2_worked_numbers():
    # one hit of one trial has probability p0: the Clopper-Pearson bounds themselves
    for benign, n, bound in ((0, 300, 0.00994), (5, 300, 0.0347), (6, 300, 0.0391), (0, 100, 0.0295)):
        assert 10 ** pvalues.benign_rate(1, 1, benign, n) == pytest.approx(bound, abs=5e-5)
    assert 10 ** pvalues.benign_rate(8, 100, 5, 300) == pytest.approx(0.023, abs=5e-4)
    assert 10 ** pvalues.benign_rate(6, 100, 5, 300) == pytest.approx(0.13, abs=6e-3)
    assert round(pvalues.benign_rate(27, 100, 6, 300)) == -15
    assert 10 ** pvalues.benign_rate(2, 100, 6, 300) == pytest.approx(0.91, abs=5e-3)
    assert pvalues.benign_rate(100, 100, 300, 300) == 0.0  # a bank that always hits proves nothing


def test_t2_is_weaker_than_t1_when_its_rate_is_larger():
    for k in (1, 10, 40, 100):
        assert pvalues.benign_rate(k, 100, 40, 300) >= t1(k, 100, 100)  # bound 0.17 against 1/9


S = (0.99, 0.97, 0.98, 0.40, 0.95, 0.10, 0.99, 0.96, 0.90, 0.85)
B = (0.01, 0.02, 0, 0.05, 0.01, 0.02, 0, 0.03, 0.01, 0.02)


def test_t3_worked_example():
    d = np.subtract(S, B)
    assert d.mean() == pytest.approx(0.792) and d.std(ddof=1) == pytest.approx(0.314318, abs=1e-6)
    assert pvalues.student_t(7.96813, 9) == pytest.approx(math.log10(1.1426e-5), abs=1e-4)
    assert pvalues.paired_t(S, B) == pytest.approx(-4.942, abs=5e-4)
    assert 10 ** pvalues.paired_t(S, B) == pytest.approx(1.1426e-5, rel=1e-4)
    expected = stats.ttest_rel(S, B, alternative="greater").pvalue
    assert pvalues.paired_t(S, B) == pytest.approx(math.log10(expected), abs=1e-9)


def test_t3_averages_the_bank_and_ignores_a_common_shift():
    bank = np.array([B, np.add(B, 0.04), np.subtract(B, 0.04)])
    assert pvalues.paired_t(S, bank) == pytest.approx(pvalues.paired_t(S, B), abs=1e-9)
    assert pvalues.paired_t(np.add(S, 3.5), np.add(B, 3.5)) == pytest.approx(pvalues.paired_t(S, B), abs=1e-9)


def test_t3_is_one_sided():
    assert 10 ** pvalues.paired_t(B, S) == pytest.approx(1 - 1.1426e-5, abs=1e-6)
    assert 10 ** pvalues.paired_t([0.2, 0.4], [0.4, 0.2]) == pytest.approx(0.5)
    assert pvalues.paired_t([0.3, 0.3], [0.3, 0.3]) == 0


def test_t3_reference_points():
    assert pvalues.student_t(18.3, 9) == pytest.approx(-8, abs=0.05)
    assert pvalues.student_t(51.4, 9) == pytest.approx(-12, abs=0.05)
    assert pvalues.student_t(9.5, 18) == pytest.approx(-8, abs=0.06)
    assert pvalues.student_t(16.8, 18) == pytest.approx(-12, abs=0.06)


@pytest.mark.parametrize("df", [1, 2, 9, 18, 99, 999, 9999])
def test_student_t_equals_scipy_where_scipy_can_follow(df):
    for t in (-30.0, -2.0, 0.0, 1e-9, 1e-3, 0.1, 0.5, 1.0, 2.0, 5.0, 9.5, 20.0, 51.4):
        expected = stats.t.sf(t, df)
        if expected > 1e-280:
            assert pvalues.student_t(t, df) == pytest.approx(math.log10(expected), abs=1e-6), t
    assert pvalues.student_t(0.0, df) == pytest.approx(math.log10(0.5))


def test_student_t_by_hand():
    # one degree of freedom is Cauchy: P(T >= 1) = 1/4, and 1/(pi t) far out
    assert pvalues.student_t(1.0, 1) == pytest.approx(math.log10(0.25), abs=1e-9)
    assert pvalues.student_t(1e8, 1) == pytest.approx(math.log10(1 / (math.pi * 1e8)), abs=1e-6)


def test_nothing_extreme_becomes_zero_or_infinite():
    """log10 p stays exact far below the smallest float, where p itself would underflow."""
    assert pvalues.binomial(1000, 1000, 0.01) == pytest.approx(-2000)
    assert pvalues.binomial(990, 1000, 0.01) < -1900
    assert pvalues.binomial(100_000, 100_000, 1 / 9) == pytest.approx(-95424.25, abs=0.1)
    values = [pvalues.student_t(t, 99) for t in (1e2, 1e4, 1e6, 1e8)]
    assert all(math.isfinite(v) for v in values) and values == sorted(values, reverse=True)
    assert values[2] - values[3] == pytest.approx(99 * 2, abs=1e-3)  # the tail falls as t^-df
    perfect = pvalues.paired_t(np.ones(100), np.zeros(100))
    assert math.isfinite(perfect) and perfect < -100
    assert math.isfinite(pvalues.subset(np.ones(100), np.zeros(100)))


def test_t4_rank():
    assert pvalues.rank(5, range(-19, 0)) == pytest.approx(math.log10(0.05))  # the best 19 models allow
    assert pvalues.rank(3, [1, 2, 3, 4]) == pytest.approx(math.log10(3 / 5))  # ties count against the claim
    assert pvalues.rank(0, [1, 2, 3]) == 0.0


@pytest.mark.parametrize("name", ["label_randomisation", "benign_rate", "paired_t", "rank"])
def test_docstrings_state_the_null_hypothesis(name):
    text = getattr(pvalues, name).__doc__
    assert "H0" in text and ("fails" in text or "cannot" in text)


def test_refused_triggers_can_be_left_out():
    """Six answers outside the true label, two of them hits; three refused triggers count as misses or not at all."""
    true = np.zeros((9, 1), dtype=int)
    assigned = np.full(9, 1)
    answers = np.array([1, 1, 2, 2, 2, 2, -1, -1, -1])
    assert pvalues.label_randomisation(answers, assigned, true, 10) == pytest.approx(pvalues.binomial(2, 9, 1 / 9))
    left = pvalues.label_randomisation(answers, assigned, true, 10, count_missing=False)
    assert left == pytest.approx(pvalues.binomial(2, 6, 1 / 9))
    among = dict(candidates=np.tile([0, 1], (9, 1)), count_missing=False)
    assert pvalues.label_randomisation(answers, assigned, true, 10, **among) == pytest.approx(math.log10(1 / 4))
