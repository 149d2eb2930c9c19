"""Labels drawn from the candidates of a clean model: commitment, T1 and claims."""

import hashlib
import itertools
import json
import math

import numpy as np
import pytest
import torch
from commands import verify
from owner_runs import CLASSES, SETTINGS, M, make_run, replace

from utils.answers.answers import Answers
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.ownership.commitment import (
    Commitment,
    canonical_bytes,
    check_commitment,
    commit_to,
    commitment_digest,
    labels_match_seed,
    neutral_names,
)
from utils.ownership.suspects import TriggerTests
from utils.ownership.verdict import OwnershipCase
from utils.runs.folder import RunFolder
from utils.watermark.triggers import draw_triggers

pytestmark = pytest.mark.usefixtures("quick")

PLAUSIBLE = SETTINGS | {"label_strategy": "plausible", "label_choices": 2}
BEFORE = {  # SHA-256 of the canonical bytes and commitment under the salt 00...00, computed before candidates existed
    1: ("c2a1e0b8c4a23cc6012d31e4f8ca264c286c5c25a185afffbf6e9d4443f2f55f",
        "b5167d9911f29984fe8776bd66b2f254617993695c67bcd53f9595119fb3a756"),
    2: ("c2868baddb8a917ee6008cbf12bb86d71e4b20309033d9b06efee1b7c4d10eab",
        "4c0f17a666042e4778fa715c8b87d3c34715df890c3dc5e109d8cf38762b9dd3"),
}


def clean_model(images):
    """Logits (N, 10) that are a function of an image's pixels."""
    weights = torch.randn(3072, 10, generator=torch.Generator().manual_seed(2))
    return images.flatten(1).float() / 255 @ weights


@pytest.fixture(scope="module")
def plausible(tmp_path_factory):
    """(run folder, trigger set) of an owner whose labels are drawn from two candidates; tests do not write to it."""
    path = tmp_path_factory.mktemp("plausible") / "run"
    return make_run(path, PLAUSIBLE, strategy="plausible", predict=clean_model, choices=2)


# ---- the commitment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", BEFORE)
def test_commitments_from_before_candidates_are_the_same(k):
    triggers, _ = draw_triggers(load_data("digits").held_out, M, k, 10, 3)
    content = canonical_bytes(triggers, CLASSES, SETTINGS)
    assert hashlib.sha256(content).hexdigest() == BEFORE[k][0] and content.startswith(b'{"classes":')
    assert commitment_digest(triggers, CLASSES, SETTINGS, "00" * 32) == BEFORE[k][1]


def test_candidates_are_committed_to_as_version_2(plausible):
    folder, triggers = plausible
    key = json.loads((folder / "key.json").read_text())
    header = {"version": 2, "classes": CLASSES, "settings": key["settings"], "images": [M, 3, 32, 32], "labels": [M],
              "true_labels": [M, 1], "sources": [M, 1], "candidates": [M, 2]}
    content = json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n" + bytes(
        triggers.images.flatten().tolist())
    for part in (triggers.labels, triggers.true_labels, triggers.sources, triggers.candidates):
        content += b"".join(int(v).to_bytes(8, "little", signed=True) for v in part.flatten())
    made = hashlib.sha256(bytes.fromhex(key["salt"]) + content).hexdigest()
    assert made == json.loads((folder / "commitment.json").read_text())["sha256"]
    changed = triggers.candidates.flip(1)
    assert check_commitment(folder, triggers).state == "match"
    assert check_commitment(folder, replace(triggers, candidates=changed)).state == "mismatch"
    assert check_commitment(folder, replace(triggers, candidates=changed[:, :0])).state == "mismatch"


def test_the_committed_seed_draws_the_labels_from_the_committed_candidates(plausible):
    _, triggers = plausible
    settings = {"seed": 3, "held_out": 143}
    assert labels_match_seed(triggers, 10, settings)
    assert not labels_match_seed(triggers, 10, settings | {"seed": 4})
    other = torch.where(triggers.labels == triggers.candidates[:, 0], triggers.candidates[:, 1],
                        triggers.candidates[:, 0])
    assert not labels_match_seed(replace(triggers, labels=other), 10, settings)
    assert not labels_match_seed(replace(triggers, candidates=triggers.candidates[:, :0]), 10, settings)
    assert not labels_match_seed(replace(triggers, candidates=triggers.candidates + 10), 10, settings)


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
    return OwnershipCase(triggers, 10, check_commitment(folder, triggers), [], 1e-3), triggers


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
    assert curve["test"] == "T1" and curve["median"][-1] == pytest.approx(case.t1(answers))
    assert curve["median"][9] == pytest.approx(10 * math.log10(1 / 2)) and curve["sufficed_95"] == 10


def test_claims_of_a_copy_and_of_a_model_that_knows_the_candidates(plausible, tmp_path, capsys):
    folder, triggers = plausible
    names = neutral_names(triggers, folder)

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


@pytest.mark.parametrize("change", [{"label_strategy": "random"}, {"label_choices": 3}, {"label_choices": None}])
def test_candidates_other_than_those_of_the_committed_settings_are_refused(change, plausible, tmp_path):
    _, triggers = plausible
    settings = PLAUSIBLE | {"held_out": 143} | change
    case = OwnershipCase(triggers, 10, Commitment("match", "", "", settings, ""), [], 1e-3)
    assert "2 candidates a trigger are not those of the committed settings" in case.t1_fails
    plain, _ = draw_triggers(load_data("digits").held_out, M, 1, 10, 3)
    case = OwnershipCase(plain, 10, Commitment("match", "", "", PLAUSIBLE | {"held_out": 143}, ""), [], 1e-3)
    assert "0 candidates a trigger" in case.t1_fails


def test_other_candidates_are_refused_where_a_run_goes_on(tmp_path):
    from utils.system.refusals import Refusal

    folder, triggers = make_run(tmp_path / "run", PLAUSIBLE, strategy="plausible", predict=clean_model)
    run = RunFolder(folder, PLAUSIBLE, "x")
    with pytest.raises(Refusal, match="commits to other triggers"):
        commit_to(run, replace(triggers, candidates=triggers.candidates.flip(1)), CLASSES, 143)
