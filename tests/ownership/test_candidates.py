"""Labels drawn from the candidates of a clean model: commitment, T1 and claims."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from commands import verify
from owner_runs import SETTINGS, M, make_run, names_of, replace

from utils.answers.answers import Answers
from utils.ownership import pvalues
from utils.ownership.commitment import read_owner
from utils.ownership.results import TriggerTests
from utils.ownership.verdict import OwnershipCase

pytestmark = pytest.mark.usefixtures("quick")

PLAUSIBLE = SETTINGS | {"label_strategy": "plausible", "label_choices": 2}


def clean_model(images):
    """Logits (N, 10) that are a function of an image's pixels."""
    weights = torch.randn(3072, 10, generator=torch.Generator().manual_seed(2))
    return images.flatten(1).float() / 255 @ weights


@pytest.fixture(scope="module")
def plausible(tmp_path_factory):
    """(run folder, trigger set) of an owner whose labels are drawn from two candidates; tests do not write to it."""
    path = tmp_path_factory.mktemp("plausible") / "run"
    return make_run(path, PLAUSIBLE, strategy="plausible", predict=clean_model, choices=2)


# ---- T1 ---------------------------------------------------------------------------------------------------------

PAIRS = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]])
ASSIGNED, ANSWERED = [0, 3, 4, 7, 8], [0, 3, 5, 7, 1]


def test_t1_with_candidates_by_hand():
    """Of the answers 0, 3, 5, 7, 1 the first four are candidates, W = 4, and three of them hit.

    p = P(Bin(4, 1/2) >= 3) = (4 + 1) / 16; with W = m = 5 it is (10 + 5 + 1) / 32. The true labels play no part: here
    the first two are the assigned ones.
    """
    true = np.array([[0], [3], [9], [9], [1]])
    t1 = lambda predicted, **more: 10 ** pvalues.label_randomisation(predicted, ASSIGNED, true, 10, candidates=PAIRS,
                                                                     **more)
    assert t1(ANSWERED) == pytest.approx(5 / 16) and t1(ANSWERED, conservative=True) == pytest.approx(1 / 2)
    assert t1(ASSIGNED) == pytest.approx(1 / 32) and t1([1, 2, 5, 6, 9]) == 1
    assert t1([9, 9, 9, 9, 1]) == 1  # no answer is a candidate
    # a missing answer is a miss: W = 5, as if it had been 9
    assert t1([0, 3, 5, 7, -1]) == pytest.approx(1 / 2) == t1([0, 3, 5, 7, 9])


def test_t1_with_four_candidates_by_hand():
    """W = 3 and two hits of probability 1/4: 3 * (1/4)^2 * 3/4 + (1/4)^3 = 10 / 64."""
    candidates = np.array([[0, 1, 2, 3]] * 4)
    log10_p = pvalues.label_randomisation([0, 1, 2, 9], [0, 1, 3, 2], np.zeros((4, 0)), 10, candidates=candidates)
    assert 10**log10_p == pytest.approx(10 / 64)
    assert pvalues.chances(np.zeros((4, 0)), 10, candidates).tolist() == [0.25] * 4


def test_empty_candidates_leave_t1_as_it_was():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 10, (50, 1)), rng.integers(0, 10, 50)
    assigned = (true[:, 0] + rng.integers(1, 10, 50)) % 10
    t1 = lambda **more: pvalues.label_randomisation(predicted, assigned, true, 10, **more)
    assert t1() == t1(candidates=np.zeros((50, 0), int))
    wrong = predicted != true[:, 0]
    assert t1() == pvalues.binomial(int((predicted == assigned).sum()), int(wrong.sum()), 1 / 9)


@pytest.mark.parametrize("c", [2, 3])
def test_t1_is_exact_over_all_draws(c):
    """3 triggers of c of 4 classes: every suspect, every draw. P(p <= a) = a at each p that occurs, never above."""
    candidates = np.array([[0, 1, 2], [1, 3, 2], [3, 0, 1]])[:, :c]
    true = np.array([[0], [1], [2]])
    for predicted in itertools.product(range(4), repeat=3):
        p = [10 ** pvalues.label_randomisation(predicted, assigned, true, 4, candidates=candidates)
             for assigned in itertools.product(*candidates.tolist())]
        assert len(p) == c**3
        for alpha in set(p):
            assert np.mean(np.array(p) <= alpha * (1 + 1e-9)) == pytest.approx(alpha)
        for alpha in (0.001, 0.05, 0.2, 0.3, 0.5, 0.9):
            assert np.mean(np.array(p) <= alpha) <= alpha


def test_the_table_of_a_script_uses_the_candidates(plausible):
    """The first candidates as answers: all M count, and those hit that were drawn."""
    _, triggers = plausible
    hits = int((triggers.labels == triggers.candidates[:, 0]).sum())
    figures = TriggerTests(triggers, 10, True).figures(torch.eye(10)[triggers.candidates[:, 0]])
    p = sum(math.comb(M, k) for k in range(hits, M + 1)) / 2**M
    assert figures["trigger_hits"] == hits and 10 ** figures["log10_p"]["T1"] == pytest.approx(p)
    unknown = replace(triggers, true_labels=triggers.true_labels[:, :0])  # T1 does not need the true labels
    assert TriggerTests(unknown, 10, True).figures(torch.eye(10)[triggers.labels])["log10_p"]["T1"] == pytest.approx(
        -M * math.log10(2))


# ---- claims -----------------------------------------------------------------------------------------------------


def case_of(plausible):
    folder, triggers = plausible
    return OwnershipCase(read_owner(folder), [], 1e-3), triggers


def test_the_sequential_test_by_hand(plausible):
    """H0 1/2, H1 3/4: hits add ln 1.5, misses ln 0.5. ln 1000 takes 18 hits (17.04), ln 0.05 takes 5 misses (4.32)."""
    case, triggers = case_of(plausible)
    drawn, (first, second) = triggers.labels, triggers.candidates.T
    copy, other = Answers(drawn.numpy(), None), Answers(torch.where(drawn == first, second, first).numpy(), None)
    found = case.sequence(copy, range(M))
    assert (found["decision"], found["queries"]) == ("claim", 18) and found["H0"].startswith("hit rate 0.5 (1 / cand")
    assert found["H1"] == "hit rate 0.75"
    found = case.sequence(other, range(M))
    assert (found["decision"], found["queries"]) == ("no claim", 5)
    # answers that are no candidates are not looked at
    outside = next(c for c in range(10) if not (triggers.candidates == c).any(dim=1)[:5].any())
    found = case.sequence(Answers(np.full(M, outside), None), range(5))
    assert found["decision"] == "undecided" and found["log10_likelihood_ratio"] == 0


def test_the_curve_ends_at_t1(plausible):
    case, triggers = case_of(plausible)
    answers = Answers(triggers.labels.numpy(), None)
    curve = case.curve(answers)
    assert curve["test"] == "T1" and curve["median"][-1] == pytest.approx(case.tests(answers)["T1"]["log10_p"])
    assert curve["queries"] == list(range(1, M + 1)) and curve["sufficed_95"] == 10
    assert curve["median"][9] == pytest.approx(10 * math.log10(1 / 2))


def test_claims_of_a_copy_and_of_a_model_that_knows_the_candidates(plausible, tmp_path, capsys):
    folder, triggers = plausible
    names = names_of(folder)

    def claim(labels):
        (tmp_path / "a.csv").write_text("".join(f"{n},{y}\n" for n, y in zip(names, labels.tolist())))
        return verify(capsys, "claim", folder, "--trust-owner", "--predictions", tmp_path / "a.csv", "--json",
                      tmp_path / "c.json")

    status, out, _ = claim(triggers.labels)
    assert status == 0 and "The claim holds: the suspect gave the assigned label for 40 of 40 triggers" in out
    assert json.loads((tmp_path / "c.json").read_text())["tests"]["T1"]["log10_p"] == pytest.approx(-40 * math.log10(2))
    status, out, _ = claim(triggers.candidates[:, 0])  # the clean model itself: right about the candidates, no copy
    assert status == 1 and "does not hold: the suspect gave the assigned label for" in out


def test_export_names_the_candidates_to_the_owner(plausible, owner, tmp_path, capsys):
    for (folder, triggers), name in ((plausible, "new"), (owner, "old")):
        assert verify(capsys, "export", folder, "--to", tmp_path / name)[0] == 0
        for entry in json.loads((tmp_path / name / "key.json").read_text())["images"].values():
            assert entry.get("candidates") == (triggers.candidates[entry["index"]].tolist() or None)


