"""T1p, the exact test on probabilities: hand-worked values, every draw counted, innocent models."""

import itertools
import math

import numpy as np
import pytest
from scipy import special

from utils.ownership import pvalues


def test_by_hand():
    """One trigger of four classes, true label 0: the assigned label stands first, second or last of three."""
    p = [[0.7, 0.2, 0.06, 0.04]]
    for assigned, share in ((1, 1 / 3), (2, 2 / 3), (3, 1.0)):
        assert pvalues.score_randomisation(p, [assigned], [[0]]) == pytest.approx(math.log10(share), abs=1e-9)
    # two triggers, both second of three, scores log 0.2 >> log 0.06 > log 0.04: of 9 draws, the five with a first and
    # the one of two seconds are at least as high
    assert pvalues.score_randomisation(p * 2, [2, 2], [[0], [0]]) == pytest.approx(math.log10(6 / 9))


def test_every_draw_counted():
    """The convolution equals the count over all draws, ties included, and is never below it."""
    rng = np.random.default_rng(1)
    for trial in range(60):
        scores, true = rng.integers(-4, 5, (5, 4)), rng.integers(0, 4, (5, 1 + trial % 2))
        allowed = pvalues.drawn_from(scores.shape, true)
        assigned = [rng.choice(np.flatnonzero(row)) for row in allowed]
        sums = [scores[np.arange(5), draw].sum() for draw in itertools.product(*map(np.flatnonzero, allowed))]
        exact = math.log10(np.mean(np.array(sums) >= scores[np.arange(5), assigned].sum()))
        found = pvalues.draw_tail(scores, allowed, assigned)
        assert found == pytest.approx(exact, abs=1e-9) and found >= exact - 1e-12


@pytest.mark.parametrize("drawn", itertools.product((0, 1), (0, 1)))
def test_every_shared_draw_counted(drawn):
    """Triggers 0 and 2 share one draw of two labels and 1, 3 and 4 another: of the four pairs of draws, both tests
    count those that score as high."""
    rng, groups = np.random.default_rng(3), np.array([0, 1, 0, 1, 1])
    candidates, none = np.array([[0, 2], [1, 3]])[groups], np.zeros((5, 0), int)
    p = rng.dirichlet(np.ones(4), 5)
    draws = [candidates[np.arange(5), np.array(one)[groups]] for one in itertools.product((0, 1), (0, 1))]
    assigned = candidates[np.arange(5), np.array(drawn)[groups]]
    share = lambda value: math.log10(np.mean([value(y) >= value(assigned) for y in draws]))
    scores, answers = pvalues.label_scores(p, np.ones(p.shape, bool)), p.argmax(1)
    found = pvalues.score_randomisation(p, assigned, none, candidates, groups)
    assert found == pytest.approx(share(lambda y: scores[np.arange(5), y].sum()), abs=1e-9)
    found = pvalues.label_randomisation(answers, assigned, none, 4, candidates=candidates, groups=groups)
    assert found == pytest.approx(share(lambda y: (answers == y).sum()), abs=1e-9)
    answers[2] = -1  # a missing answer hits whatever could have been drawn instead
    found = pvalues.label_randomisation(answers, assigned, none, 4, candidates=candidates, groups=groups)
    assert found == pytest.approx(share(lambda y: (answers == y).sum() + (y[2] != assigned[2])), abs=1e-9)


def test_far_below_the_smallest_float_at_the_ends_and_on_a_long_grid():
    scores, everything = np.tile(np.arange(10), (2000, 1)), np.ones((2000, 10), bool)
    assert pvalues.draw_tail(scores, everything, np.full(2000, 9)) == pytest.approx(-2000)
    assert pvalues.draw_tail(scores, everything, np.full(2000, 0)) == 0.0
    almost = np.full(2000, 9)
    almost[0] = 8  # sums of 17999 or more: one draw, and 2000 with one label second
    assert pvalues.draw_tail(scores, everything, almost) == pytest.approx(-2000 + math.log10(2001), abs=1e-6)
    # 1,500 coin tosses with a score of 0 or 300: a binomial tail on a grid of 450,000 steps
    coins, heads = np.tile([0, 300], (1500, 1)), (np.arange(1500) < 900).astype(int)
    found = pvalues.draw_tail(coins, np.ones(coins.shape, bool), heads)
    assert found == pytest.approx(pvalues.binomial(900, 1500, 0.5), abs=1e-6)


def test_what_says_nothing_gives_one():
    true, assigned = np.zeros((20, 1), int), np.full(20, 3)
    assert pvalues.score_randomisation(np.full((20, 10), 0.1), assigned, true) == 0.0  # a constant suspect
    assert pvalues.score_randomisation(np.eye(2)[[0] * 20], np.ones(20, int), true) == 0.0  # one wrong label is left
    assert pvalues.score_randomisation(np.eye(10)[true[:, 0]], assigned, true) == 0.0  # sure of the truth: others tie


def test_an_assigned_label_that_could_not_be_drawn_is_left_out():
    p, true = np.random.default_rng(2).dirichlet(np.ones(5), 6), np.zeros((6, 1), int)
    drawn = np.array([0, 2, 3, 4, 1, 2])
    assert pvalues.score_randomisation(p, drawn, true) == pvalues.score_randomisation(p[1:], drawn[1:], true[1:])


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 3, 4]])  # triggers 0 and 2 share a draw
def test_a_missing_answer_counts_as_the_worst_or_not_at_all(groups):
    rng = np.random.default_rng(4)
    p, true, drawn = rng.dirichlet(np.ones(4), 5), np.zeros((5, 1), int), np.array([1, 2, 1, 1, 2])
    lost, others = p * (np.arange(5) != 2)[:, None], [0, 1, 3, 4]
    p_of = lambda given, **more: pvalues.score_randomisation(given, drawn, true, groups=groups, **more)
    left = pvalues.score_randomisation(p[others], drawn[others], true[others])
    assert p_of(lost, count_missing=False) == pytest.approx(left)
    width = np.exp(pvalues.widest(np.log(p[others]), np.arange(4) != true[others]))
    fill = np.array([np.eye(4)[y] for y in range(4)] + [*rng.dirichlet(np.full(4, 0.1), 50)])
    fill = np.maximum(fill, fill.max(axis=1, keepdims=True) / width)  # answers in its place, as sure as others or less
    worst = max(p_of(np.where(lost.any(1, keepdims=True), p, row)) for row in fill)
    assert worst <= p_of(lost) + 1e-9 and p_of(lost) > left


@pytest.mark.parametrize("spread, places", [(2, 9), (20, 9), (2, 1), (0, 9)])  # usual, sharp, rounded, constant
@pytest.mark.parametrize("draw_among", ["wrong", "likeliest", "adversarial"])
def test_super_uniform_for_innocent_models(spread, places, draw_among):
    """4 triggers of 4 classes, every draw against a fixed model: P(p <= a) <= a, whichever labels are candidates.

    likeliest    the model's own two most probable classes: the suspect is the clean model that chose them
    adversarial  its most and its least probable class, the widest spread that an owner could choose
    """
    rng = np.random.default_rng(3)
    true, logits = rng.integers(0, 4, (4, 1)), spread * (rng.normal(size=(4, 4)) + 3 * np.eye(4)) + rng.normal(size=4)
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).round(places)
    order = p.argsort(axis=1, kind="stable")
    candidates = {"wrong": None, "likeliest": order[:, -2:], "adversarial": order[:, [0, -1]]}[draw_among]
    draws = itertools.product(*map(np.flatnonzero, pvalues.drawn_from(p.shape, true, candidates)))
    found = 10 ** np.array([pvalues.score_randomisation(p, drawn, true, candidates) for drawn in draws])
    assert len(found) == (81 if draw_among == "wrong" else 16)
    for alpha in found * (1 + 1e-9):
        assert (found <= alpha).mean() <= alpha


def test_scores_are_eighths_of_a_factor_of_e_down_to_a_millionth():
    """The published p-values are of these: 8 ln 0.5 = -5.5, 8 ln 1e-5 = -92.1, 8 ln 1e-6 = -110.5."""
    p = np.array([[1, 0.5, 1e-5, 1e-7, 0]])
    assert pvalues.label_scores(p, np.ones(p.shape, bool)).tolist() == [[0, -6, -92, -111, -111]]


def test_narrow_scores_are_spread_over_eight_steps():
    """ln 1.01 = 0.00995 is the widest that the labels drawn from differ; ln 1.005 is half of it, and so 4 steps."""
    p = np.array([[1, 1.01, 1.005, 0.5], [1, 1.005, 1, 1]])
    scores = pvalues.label_scores(p, np.array([[True, True, True, False], [True, True, True, True]]))
    assert (scores[:, :3] - scores[:, :1]).tolist() == [[0, 8, 4], [0, 4, 0]]


@pytest.mark.parametrize("temperature", [20, 1e3, 1e6])
def test_a_temperature_hides_no_copy(temperature):
    """A thief's model may answer at any temperature: its labels and their order stay, and nearly all of p, beside a
    missing answer too."""
    rng, m = np.random.default_rng(0), 40
    true, assigned, logits = np.zeros((m, 1), int), rng.integers(1, 10, m), rng.normal(0, 2, (m, 10))
    logits[np.arange(m), assigned] += 3
    logits[:, 0] += 12
    for answered in (m, m - 1):
        p = [special.softmax(logits / t, axis=1) * (np.arange(m) < answered)[:, None] for t in (1, temperature)]
        plain, hot = (pvalues.score_randomisation(one, assigned, true) for one in p)
        assert plain < -12 and hot < 0.8 * plain


def test_the_bound_of_the_roundings_is_added():
    """Of nine coins six show heads: p is above 130 / 512, by less than a billionth."""
    coins, heads = np.tile([0, 1], (9, 1)), (np.arange(9) < 6).astype(int)
    found = pvalues.draw_tail(coins, np.ones(coins.shape, bool), heads)
    assert 1e-13 < found - math.log10(130 / 512) < 1e-9
