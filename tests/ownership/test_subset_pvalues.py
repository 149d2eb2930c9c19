"""p-values of subsets of the answers, and their harmonic mean."""

import math

import numpy as np
import pytest
from scipy import stats

from utils.ownership import pvalues


def test_harmonic_mean():
    assert 10 ** pvalues.harmonic_mean([-3, -2, -1]) == pytest.approx(0.0027027, abs=5e-8)
    assert 10 ** pvalues.harmonic_mean([-3, -2, -1]) * math.e * math.log(3) == pytest.approx(0.0081, abs=5e-5)
    assert pvalues.harmonic_mean([-200, -300, -250]) == pytest.approx(math.log10(3) - 300, abs=1e-9)
    for p in (0.0, -1.5, -400.0):
        assert pvalues.harmonic_mean([p] * 7) == pytest.approx(p, abs=1e-9)
    assert pvalues.harmonic_mean([-5.0]) == pytest.approx(-5.0)
    for count, factor in ((3, 2.99), (40, 10.0), (100, 12.5)):  # the published factors of a valid bound
        assert math.e * math.log(count) == pytest.approx(factor, abs=0.05)


@pytest.mark.parametrize("count, share", [(3, 0.056), (40, 0.072), (100, 0.076)])
def test_harmonic_mean_is_not_quite_a_p_value(count, share):
    rng = np.random.default_rng(count)
    below = [pvalues.harmonic_mean(row) < math.log10(0.05) for row in np.log10(rng.random((5000, count)))]
    assert np.mean(below) == pytest.approx(share, abs=0.012)


def test_subset_is_the_harmonic_mean_of_small_t_tests():
    rng = np.random.default_rng(0)
    s, b = rng.random(30), 0.2 * rng.random(30)
    draw = np.random.default_rng(0)
    each = []
    for _ in range(100):
        pick = draw.choice(30, 10, replace=False)
        each.append(stats.ttest_rel(s[pick], b[pick], alternative="greater").pvalue)
    expected = math.log10(100 / sum(1 / p for p in each))
    assert pvalues.subset(s, b) == pytest.approx(expected, abs=1e-6)
    assert pvalues.subset(s, b) == pvalues.subset(s, b)
    assert pvalues.subset(s[:10], b[:10]) == pytest.approx(pvalues.paired_t(s[:10], b[:10]), abs=1e-9)


def test_subset_has_the_orders_of_magnitude_of_the_paper():
    """The published simulation: hits Beta(6, 1.5), misses Beta(.5, 6), benign Beta(.3, 30), three seeds."""
    rng = np.random.default_rng(0)

    def seed_mean(hits, a=6.0, b=1.5):
        over_seeds = []
        for _ in range(3):
            s = np.concatenate([rng.beta(a, b, hits), rng.beta(0.5, 6, 100 - hits)])
            over_seeds.append(pvalues.subset(s, rng.beta(0.3, 30, 100)))
        return pvalues.harmonic_mean(over_seeds)

    assert seed_mean(82) == pytest.approx(-8.5, abs=2)
    assert seed_mean(73) == pytest.approx(-7, abs=2)
    assert seed_mean(51) == pytest.approx(-4.5, abs=1.5)
    assert seed_mean(100, 12.0) == pytest.approx(-12.7, abs=2)


def p_of(u, v, seed=0, m=None, repeats=1, **more):
    return 10 ** pvalues.subset_pvalues(u, v, m or len(u), repeats, np.random.default_rng(seed), **more)


def test_welch_and_paired_p_values_by_hand():
    u, v = (0.9, 0.8, 0.7, 0.6, 0.5), (0.4, 0.5, 0.3, 0.2, 0.1)
    assert p_of(u, v)[0] == pytest.approx(0.001975, abs=5e-7)
    assert p_of(u, v, alternative="two-sided")[0] == pytest.approx(0.003950, abs=5e-7)
    assert p_of(u, v, paired=True)[0] == pytest.approx(0.000112, abs=5e-7)
    assert p_of(v, u)[0] == pytest.approx(1 - 0.001975, abs=5e-7)


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_subset_p_values_equal_scipys(alternative):
    rng = np.random.default_rng(0)
    u, v = rng.normal(0.3, 1, 12), rng.normal(0, 3, 12)
    for paired in (False, True):
        picks = np.random.default_rng(5)
        for p in p_of(u, v, 5, 7, 6, paired=paired, alternative=alternative):
            pick = picks.choice(12, 7, replace=False)
            test = stats.ttest_rel if paired else lambda a, b, **more: stats.ttest_ind(a, b, equal_var=False, **more)
            assert p == pytest.approx(test(u[pick], v[pick], alternative=alternative).pvalue)


@pytest.mark.parametrize("paired", [False, True])
def test_scores_without_variance_are_decided_by_sign(paired):
    ones = np.ones(10)
    log = lambda u, v, **more: pvalues.subset_pvalues(u, v, 10, 3, np.random.default_rng(0), paired=paired, **more)
    assert (log(ones * 0.1, ones * 0.1) == 0).all()
    assert (log(ones, -ones) < -40).all() and np.isfinite(log(ones, -ones)).all()
    assert (log(-ones, ones) == 0).all() and (log(-ones, ones, alternative="two-sided") < -40).all()
    with pytest.raises(ValueError):
        pvalues.subset_pvalues(ones, ones[:9], 5, 3, np.random.default_rng(0))


def test_subset_p_values_by_hand():
    """The worked example of T3: ten pairs, t = 7.968, p = 1.1426e-5; Welch, one-sided, 9.07e-6."""
    s = (0.99, 0.97, 0.98, 0.40, 0.95, 0.10, 0.99, 0.96, 0.90, 0.85)
    b = (0.01, 0.02, 0, 0.05, 0.01, 0.02, 0, 0.03, 0.01, 0.02)
    found = lambda *args, **kind: pvalues.subset_pvalues(*args, 10, 3, np.random.default_rng(0), **kind)
    assert found(s, b, paired=True) == pytest.approx([math.log10(1.1426e-5)] * 3, abs=1e-4)
    assert found(s, b) == pytest.approx([math.log10(9.07e-6)] * 3, abs=1e-3)
    assert found(s, b, paired=True, alternative="two-sided") == pytest.approx([math.log10(2.2852e-5)] * 3, abs=1e-4)
    ones, zeros = np.ones(12), np.zeros(12)
    for paired in (True, False):
        assert found(ones, ones, paired=paired).tolist() == [0, 0, 0]
        assert (found(ones, zeros, paired=paired) < -40).all()
        assert found(zeros, ones, paired=paired).tolist() == [0, 0, 0]


def test_harmonic_mean_of_forty_under_the_null():
    """For models of equal posteriors it is below .05 in about 8 % and below .01 in about 1 % of cases."""
    rng = np.random.default_rng(0)
    found = np.array([
        pvalues.harmonic_mean(pvalues.subset_pvalues(*rng.normal(size=(2, 980)), 10, 40, rng, alternative="two-sided"))
        for _ in range(300)
    ])
    assert 0.03 < (found < math.log10(0.05)).mean() < 0.14
    assert (found < -2).mean() < 0.04
