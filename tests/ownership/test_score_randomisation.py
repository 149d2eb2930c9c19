"""T1p, the exact test on probabilities: hand-worked values, every draw counted, innocent models, and the decision."""

import itertools
import math

import numpy as np
import pytest
from commands import verify
from owner_runs import M, names_of

from utils.answers.answers import Answers
from utils.ownership import pvalues
from utils.ownership.commitment import read_owner
from utils.ownership.verdict import OwnershipCase
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


def counted_tail(scores, allowed, assigned):
    """P(sum >= S) by going through every draw."""
    total = sum(scores[i, c] for i, c in enumerate(assigned))
    draws = list(itertools.product(*(np.flatnonzero(row) for row in allowed)))
    return sum(sum(scores[i, c] for i, c in enumerate(draw)) >= total for draw in draws) / len(draws)


def test_by_hand():
    """One trigger of four classes, true label 0: the assigned label stands first, second or last of three."""
    p = [[0.7, 0.2, 0.06, 0.04]]
    for assigned, share in ((1, 1 / 3), (2, 2 / 3), (3, 1.0)):
        assert pvalues.score_randomisation(p, [assigned], [[0]]) == pytest.approx(math.log10(share), abs=1e-9)
    # two triggers, both second of three, scores log 0.2 >> log 0.06 > log 0.04: of 9 draws, the five with a first and
    # the one of two seconds are at least as high
    both = pvalues.score_randomisation(p * 2, [2, 2], [[0], [0]])
    assert both == pytest.approx(math.log10(6 / 9))


def test_two_candidates_are_a_sign_flip_test():
    """v_i(y_i) - v_i(other) = d_i; p is the share of the 2^m sign patterns whose sum is at least the observed one."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 8)
    candidates = np.array([rng.choice(5, 2, replace=False) for _ in range(8)])
    assigned = candidates[np.arange(8), rng.integers(0, 2, 8)]
    allowed = pvalues.drawn_from(p.shape, None, candidates)
    v = pvalues.label_scores(p, allowed)
    other = candidates.sum(1) - assigned
    d = v[np.arange(8), assigned] - v[np.arange(8), other]
    sums = [np.dot(signs, d) for signs in itertools.product((-1, 1), repeat=8)]
    share = np.mean(np.array(sums) >= d.sum())
    assert pvalues.score_randomisation(p, assigned, np.zeros((8, 1)), candidates) == pytest.approx(math.log10(share))


def test_every_draw_counted():
    """The convolution equals the count over all draws, ties included, and is never below it."""
    rng = np.random.default_rng(1)
    for trial in range(60):
        scores = rng.integers(-4, 5, (5, 4))
        true = rng.integers(0, 4, (5, 1 + trial % 2))
        allowed = pvalues.drawn_from(scores.shape, true)
        assigned = [rng.choice(np.flatnonzero(row)) for row in allowed]
        exact = math.log10(counted_tail(scores, allowed, assigned))
        found = pvalues.draw_tail(scores, allowed, assigned)
        assert found == pytest.approx(exact, abs=1e-9) and found >= exact - 1e-12


def test_far_below_the_smallest_float_and_at_the_ends():
    scores = np.tile(np.arange(10), (2000, 1))
    everything = np.ones(scores.shape, bool)
    assert pvalues.draw_tail(scores, everything, np.full(2000, 9)) == pytest.approx(-2000)
    assert pvalues.draw_tail(scores, everything, np.full(2000, 0)) == 0.0
    almost = np.full(2000, 9)
    almost[0] = 8  # sums of 17999 or more: one draw, and 2000 with one label second
    assert pvalues.draw_tail(scores, everything, almost) == pytest.approx(-2000 + math.log10(2001), abs=1e-6)


def test_long_convolutions_are_exact_too():
    """1,500 coin tosses with a score of 0 or 300: a binomial tail on a grid of 450,000 steps."""
    scores = np.tile([0, 300], (1500, 1))
    assigned = (np.arange(1500) < 900).astype(int)
    found = pvalues.draw_tail(scores, np.ones(scores.shape, bool), assigned)
    assert found == pytest.approx(pvalues.binomial(900, 1500, 0.5), abs=1e-6)


def test_what_says_nothing_gives_one():
    equal = np.full((20, 10), 0.1)
    true = np.zeros((20, 1), int)
    assert pvalues.score_randomisation(equal, np.full(20, 3), true) == 0.0  # a constant suspect
    assert pvalues.score_randomisation(np.eye(2)[[0] * 20], np.ones(20, int), true) == 0.0  # one wrong label is left
    one_hot = np.eye(10)[true[:, 0]]  # sure of the true label: all others tie
    assert pvalues.score_randomisation(one_hot, np.full(20, 3), true) == 0.0


def test_an_assigned_label_that_could_not_be_drawn_is_left_out():
    p = np.random.default_rng(2).dirichlet(np.ones(5), 6)
    true = np.zeros((6, 1), int)
    drawn = np.array([1, 2, 3, 4, 1, 2])
    impossible = drawn.copy()
    impossible[0] = 0
    assert pvalues.score_randomisation(p, impossible, true) == pvalues.score_randomisation(p[1:], drawn[1:], true[1:])


@pytest.mark.parametrize("row", [np.zeros(4), [np.nan, 0.5, 0.5, 0], [-1, 0, 0, 0]])
def test_an_answer_without_probabilities_is_refused(row):
    p = np.full((3, 4), 0.25)
    p[1] = row
    with pytest.raises(ValueError, match="probabilities of every answer"):
        pvalues.score_randomisation(p, [1, 1, 1], [[0], [0], [0]])


def innocent(kind, rng, true, classes=10):
    """Probabilities (m, C) of a model that never saw the assigned labels, fixed before they are drawn."""
    m = len(true)
    if kind == "constant":
        return np.tile(rng.dirichlet(np.ones(classes)), (m, 1))
    sure = {"good": 6.0, "poor": 0.5, "sharp": 60.0, "rounded": 3.0}[kind]
    logits = rng.normal(size=(m, classes)) * (20 if kind == "sharp" else 2)
    logits[np.arange(m), true[:, 0]] += sure
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p.round(2) if kind == "rounded" else p


@pytest.mark.parametrize("kind", ["good", "poor", "constant", "sharp", "rounded"])
@pytest.mark.parametrize("draw_among", ["wrong", "likeliest", "adversarial"])
def test_super_uniform_for_innocent_models(kind, draw_among):
    """1,000 draws against a fixed model: P(p <= alpha) <= alpha, whichever labels are candidates.

    likeliest    the model's own two most probable classes: the suspect is the clean model that chose them
    adversarial  its most and its least probable class, the widest spread that an owner could choose
    """
    rng = np.random.default_rng(3)
    true = rng.integers(0, 10, (40, 1))
    p = innocent(kind, rng, true)
    order = p.argsort(axis=1, kind="stable")
    candidates = {"wrong": None, "likeliest": order[:, -2:], "adversarial": order[:, [0, -1]]}[draw_among]
    allowed = pvalues.drawn_from(p.shape, true, candidates)
    scores = pvalues.label_scores(p, allowed)
    scores -= scores.min()
    chance = np.ones(1)  # of each sum, by plain convolution of the 40 draws
    for row, may in zip(scores, allowed):
        chance = np.convolve(chance, np.bincount(row[may], minlength=int(scores.max()) + 1) / may.sum())
    tail = chance[::-1].cumsum()[::-1]
    found = []
    for draw in range(1000):
        assigned = np.array([rng.choice(np.flatnonzero(may)) for may in allowed])
        found.append(tail[scores[np.arange(40), assigned].sum()])
        if draw < 10:
            assert pvalues.score_randomisation(p, assigned, true, candidates) == pytest.approx(math.log10(found[-1]))
    share = lambda alpha: float((np.array(found) <= alpha).mean())
    for alpha in (0.5, 0.1, 0.05, 0.01):
        assert share(alpha) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 1000), alpha


def test_a_copy_that_ranks_the_assigned_label_second_is_found():
    """No hit at all, so T1 says nothing; the assigned label is the best of the wrong ones on half of the triggers."""
    rng = np.random.default_rng(4)
    true = rng.integers(0, 10, (50, 1))
    assigned = (true[:, 0] + rng.integers(1, 10, 50)) % 10
    p = innocent("good", rng, true)
    p[np.arange(50), true[:, 0]] = 10
    copy = p.copy()
    half = np.arange(50) < 25
    copy[half, assigned[half]] = 5
    assert pvalues.label_randomisation(copy.argmax(1), assigned, true, 10) == 0.0
    assert pvalues.score_randomisation(copy, assigned, true) < -4 < pvalues.score_randomisation(p, assigned, true)


def test_either_doubles():
    assert pvalues.either(-4.0, -1.0) == pytest.approx(-4 + math.log10(2))
    assert pvalues.either(-4.0, None) == -4.0 and pvalues.either(-0.1, -0.2) == 0.0 and pvalues.either(None) is None


# ---- the decision -----------------------------------------------------------------------------------------------


def soft_answers(triggers, weight, seed=0):
    """A suspect that answers the true label and gives the assigned one `weight` beside random others."""
    rng = np.random.default_rng(seed)
    p = rng.random((M, 10)) * 0.1
    p[np.arange(M), triggers.labels.numpy()] += weight
    p[np.arange(M), triggers.true_labels[:, 0].numpy()] = 2.0
    p /= p.sum(1, keepdims=True)
    return Answers(p.argmax(1), p)


def case_of(owner, exact="both", bank=()):
    return OwnershipCase(read_owner(owner[0]), list(bank), 1e-3, exact=exact)


def test_the_named_test_decides(owner):
    copy = soft_answers(owner[1], 0.1)
    reports = {exact: case_of(owner, exact).report(copy) for exact in ("both", "T1", "T1p")}
    t1p = reports["both"]["tests"]["T1p"]["log10_p"]
    assert reports["both"]["hits"] == 0 and t1p < -10
    assert [reports[e]["decision"]["holds"] for e in ("both", "T1", "T1p")] == [True, False, True]
    assert reports["T1p"]["decision"]["log10_p"] == t1p
    assert reports["both"]["decision"]["log10_p"] == pytest.approx(t1p + math.log10(2))
    assert "doubled" in reports["both"]["decision"]["why"] and "beforehand" in reports["T1p"]["decision"]["why"]


def test_labels_alone_keep_t1(owner):
    labels = Answers(owner[1].labels.numpy(), None)
    report = case_of(owner).report(labels)
    assert report["decision"]["rests_on"] == "T1" and report["decision"]["log10_p"] == report["tests"]["T1"]["log10_p"]
    assert "labels alone" in report["tests"]["T1p"]["why_not"]
    with pytest.raises(Refusal, match="--test T1p does not apply: the suspect gives labels alone"):
        case_of(owner, "T1p").report(labels)


def test_missing_answers_leave_t1(owner):
    copy = soft_answers(owner[1], 0.1)
    copy.probabilities[3], copy.labels[3] = 0, -1
    assert "1 answers are missing" in case_of(owner).report(copy)["tests"]["T1p"]["why_not"]


def test_a_benign_model_that_t1p_would_claim_refuses_the_claim(owner):
    copy, twin = soft_answers(owner[1], 0.1), soft_answers(owner[1], 0.1, seed=1)
    decision = case_of(owner, bank=[twin]).report(copy)["decision"]
    assert not decision["holds"] and "would claim 1 of the 1 benign" in decision["why"]


def test_the_command_says_which_test(owner, tmp_path, capsys):
    copy = soft_answers(owner[1], 0.1)
    rows = [",".join([name, *map(str, p)]) for name, p in zip(names_of(owner[0]), copy.probabilities)]
    (tmp_path / "soft.csv").write_text("\n".join(rows) + "\n")
    asked = ("claim", owner[0], "--predictions", tmp_path / "soft.csv", "--trust-owner")
    status, out, _ = verify(capsys, *asked)
    assert status == 0 and "rests on T1 and T1p" in out and "(score randomisation)" in out
    status, out, _ = verify(capsys, *asked, "--test", "T1")
    assert status == 1 and "rests on T1 at" in out
