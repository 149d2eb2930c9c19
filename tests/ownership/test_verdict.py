"""The verdict over all tests, with random labels and with labels among candidates, and the sequential test."""

import math

import numpy as np
import pytest
import torch
from owner_runs import CLASSES, PLAUSIBLE, M, make_run, replace
from scipy import stats

from utils.answers.answers import Answer, Answers, gather_answers
from utils.ownership.claim import claim_sentence
from utils.ownership.commitment import read_owner
from utils.ownership.pvalues import paired_t
from utils.ownership.results import TriggerTests
from utils.ownership.verdict import OwnershipCase
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


def case_of(made, bank=(), **settings):
    return OwnershipCase(read_owner(made[0]), list(bank), 1e-3, **settings)


def soft_copy(triggers, seed=0):
    """A suspect that answers the true label and gives the assigned one 0.1 beside random others."""
    p = np.random.default_rng(seed).random((M, 10)) * 0.1
    p[np.arange(M), triggers.labels.numpy()] += 0.1
    p[np.arange(M), triggers.true_labels[:, 0].numpy()] = 2.0
    p /= p.sum(1, keepdims=True)
    return Answers(p.argmax(1), p)


def test_the_named_test_decides(owner):
    copy = soft_copy(owner[1])
    reports = {exact: case_of(owner, exact=exact).report(copy) for exact in ("both", "T1", "T1p")}
    t1p = reports["both"]["tests"]["T1p"]["log10_p"]
    assert reports["both"]["hits"] == 0 and t1p < -10
    assert [reports[e]["decision"]["holds"] for e in ("both", "T1", "T1p")] == [True, False, True]
    assert reports["T1p"]["decision"]["log10_p"] == t1p
    assert reports["both"]["decision"]["log10_p"] == pytest.approx(t1p + math.log10(2))
    assert "doubled" in reports["both"]["decision"]["why"] and "was named before" in reports["T1p"]["decision"]["why"]


def test_labels_alone_keep_t1(owner):
    labels = Answers(owner[1].labels.numpy(), None)
    report = case_of(owner).report(labels)
    assert report["decision"]["rests_on"] == "T1" and report["decision"]["log10_p"] == report["tests"]["T1"]["log10_p"]
    assert "labels alone" in report["tests"]["T1p"]["why_not"]
    with pytest.raises(Refusal, match="--test T1p does not apply: the suspect gives labels alone"):
        case_of(owner, exact="T1p").report(labels)


def test_one_answer_without_probabilities_does_not_hide_the_others(owner):
    """Else a copy escapes T1p at the price of one odd reply in m."""
    whole = soft_copy(owner[1])
    given = [Answer(int(label), row.tolist()) for label, row in zip(*whole)]
    p = lambda changed, **settings: case_of(owner, **settings).report(
        gather_answers(changed, 10))["tests"]["T1p"]["log10_p"]
    best, without = p(given), [*given[:3], Answer(), *given[4:]]
    assert best < -30
    assert best <= p([*given[:3], Answer(given[3].label), *given[4:]]) < best + 4
    assert best <= p(without, count_missing=False) < best + 4
    assert best + 4 < p(without) < -10  # the worst answer in its place


def test_a_hint_says_when_a_suspect_seems_to_be_asked_wrongly(owner):
    true, assigned = owner[1].true_labels[:, 0].numpy(), owner[1].labels.numpy()
    hint = lambda labels: case_of(owner).hint(Answers(labels, None))
    assert hint(true) is None and hint(assigned) is None
    assert f"the same answer to {M} of {M}" in hint(np.full(M, 3)) and "--mean" in hint(np.full(M, 3))
    wrong = np.array([next(c for c in range(10) if c not in pair) for pair in zip(true, assigned)])
    assert "a true or assigned label to 0" in hint(wrong)
    one_label = case_of(owner)  # as the triggers of EWE and RS
    one_label.assigned = np.full(M, 3)
    assert one_label.hint(Answers(one_label.assigned, None)) is None


def test_the_sequential_test_compares_with_benign_hits_on_the_triggers_that_were_asked(owner):
    """Under T2 a benign model hits the last eight triggers: more than the five that a copy was asked, or those five."""
    labels, place = owner[1].labels.numpy(), np.arange(M)
    bank = [Answers(np.where(place >= last, labels, (labels + 1) % 10), None) for last in (M - 8, M, M, M, M)]
    case = OwnershipCase(read_owner(owner[0])._replace(uniform=False), bank, 1e-3)
    for asked, holds in ((range(5), True), (range(M - 5, M), False)):
        copy = Answers(np.where(np.isin(place, asked), labels, -1), None)
        assert case.report(copy, order=asked, stopped=True)["decision"]["holds"] is holds


@pytest.fixture(scope="module")
def plausible(tmp_path_factory):
    """(run folder, trigger set) of an owner whose labels are drawn from two candidates; tests do not write to it."""
    weights = torch.randn(3072, 10, generator=torch.Generator().manual_seed(2))
    clean = lambda images: images.flatten(1).float() / 255 @ weights
    return make_run(tmp_path_factory.mktemp("plausible") / "run", PLAUSIBLE, strategy="plausible", predict=clean,
                    choices=2)


def test_the_sequential_test_by_hand(plausible):
    """H0 1/2, H1 3/4: hits add ln 1.5, misses ln 0.5. ln 1000 takes 18 hits (17.04), ln 0.05 takes 5 misses (4.32)."""
    case, triggers = case_of(plausible), plausible[1]
    drawn, (first, second) = triggers.labels, triggers.candidates.T
    found = case.sequence(Answers(drawn.numpy(), None), range(M))
    assert (found["decision"], found["queries"]) == ("claim", 18) and found["H0"].startswith("hit rate 0.5 (1 / cand")
    assert found["H1"] == "hit rate 0.75"
    found = case.sequence(Answers(torch.where(drawn == first, second, first).numpy(), None), range(M))
    assert (found["decision"], found["queries"]) == ("no claim", 5)
    # answers that are no candidates are not looked at
    outside = next(c for c in range(10) if not (triggers.candidates == c).any(dim=1)[:5].any())
    found = case.sequence(Answers(np.full(M, outside), None), range(5))
    assert found["decision"] == "undecided" and found["log10_likelihood_ratio"] == 0


def test_a_copy_is_claimed_and_the_clean_model_that_knows_the_candidates_is_not(plausible):
    """The first candidates as answers: all M count, and those hit that were drawn; tables use the candidates too."""
    case, triggers = case_of(plausible), plausible[1]
    decide = lambda labels: case.decide(Answers(labels.numpy(), None))
    assert decide(triggers.labels)["log10_p"] == pytest.approx(-M * math.log10(2))
    said = claim_sentence(case.report(Answers(triggers.labels.numpy(), None)))
    assert said.startswith(f"The claim holds: the suspect gave the assigned label for {M} of {M} triggers")
    first = triggers.candidates[:, 0]
    hits = int((triggers.labels == first).sum())
    p = sum(math.comb(M, k) for k in range(hits, M + 1)) / 2**M
    assert not decide(first)["holds"] and 10 ** decide(first)["log10_p"] == pytest.approx(p)
    figures = TriggerTests(triggers, 10, True).figures(torch.eye(10)[first])
    assert figures["trigger_hits"] == hits and 10 ** figures["log10_p"]["T1"] == pytest.approx(p)
    unknown = replace(triggers, true_labels=None)  # T1 does not need the true labels
    figures = TriggerTests(unknown, 10, True).figures(torch.eye(10)[triggers.labels])
    assert figures["log10_p"]["T1"] == pytest.approx(-M * math.log10(2))


def test_triggers_that_share_a_draw_count_once(plausible, tmp_path):
    """As many coins as draws, in a verdict and in a table, however many triggers show them."""
    groups = torch.arange(M) // 4 * 4
    parts = {name: getattr(plausible[1], name)[groups] for name in ("labels", "candidates")}
    triggers = replace(plausible[1], groups=groups, **parts)
    sure, draws = torch.eye(10)[triggers.labels], len(groups.unique())
    owner = read_owner(plausible[0])._replace(triggers=triggers)
    tests = OwnershipCase(owner, [], 1e-3).tests(Answers(triggers.labels.numpy(), sure.numpy()))
    table = TriggerTests(triggers, 10, True).figures(99 * sure)["log10_p"]
    for name in ("T1", "T1p"):
        assert tests[name]["log10_p"] == pytest.approx(-draws * math.log10(2)) == table[name]


def test_without_a_known_wrong_label_that_was_drawn_neither_exact_test_is_run(owner):
    """As of a foreign checkpoint: nobody knows which answers are wrong, so 1 / 9 of these may hit, not 1 / 10."""
    unknown = replace(owner[1], true_labels=None)
    log10_p = TriggerTests(unknown, 10, True).figures(torch.eye(10)[unknown.labels])["log10_p"]
    assert {log10_p[name] for name in ("T1", "T1p", "T1_conservative")} == {None}
    two = replace(owner[1], labels=owner[1].labels % 2, true_labels=1 - owner[1].labels[:, None] % 2)
    for triggers, classes in ((unknown, CLASSES), (two, ["a", "b"])):
        case = OwnershipCase(read_owner(owner[0])._replace(triggers=triggers, classes=classes), [], 1e-3)
        assert "no test can decide: T1 does not apply, for no wrong label is left to chance" in case.refused


def test_the_level_is_the_one_that_was_asked_for(owner):
    """Six of 40 hits, all others true labels: p = 10^-5.7, which is below one level and above the other."""
    labels, true = owner[1].labels.numpy(), owner[1].true_labels[:, 0].numpy()
    some, none = (Answers(np.where(np.arange(M) < hits, labels, true), None) for hits in (6, 0))
    holds = lambda alpha, *bank: OwnershipCase(read_owner(owner[0]), list(bank), alpha).decide(some)
    assert holds(1e-5)["log10_p"] == pytest.approx(-6 * math.log10(9))
    assert holds(1e-5)["holds"] and not holds(1e-6)["holds"]
    two = Answers(np.where(np.arange(M) < 2, labels, true), None)  # a benign model of p = 10^-1.9
    assert "would claim 1 of the 1" in holds(0.05, two)["why"] and holds(1e-3, two)["holds"]


def test_t2_and_t4_by_hand(owner):
    """Five benign models of which one hits twice: 2 of 200 pooled; the suspect hits 10 of 40."""
    labels = owner[1].labels.numpy()
    hitting = lambda n: Answers(np.where(np.arange(M) < n, labels, (labels + 1) % 10), None)
    case = OwnershipCase(read_owner(owner[0])._replace(uniform=False), [hitting(n) for n in (2, 0, 0, 0, 0)], 1e-3)
    tests, bound = case.tests(hitting(10)), stats.beta.ppf(0.95, 3, 198)
    assert tests["T2"]["log10_p"] == pytest.approx(math.log10(stats.binom.sf(9, M, bound)))
    assert tests["T4"]["log10_p"] == pytest.approx(-math.log10(6))
    assert case.tests(hitting(1))["T4"]["log10_p"] == pytest.approx(math.log10(2 / 6))


def test_t3_compares_the_probabilities_of_the_assigned_labels(owner):
    """In a verdict and in a table: here these rise, and those of the true labels fall."""
    labels, place = owner[1].labels.numpy(), np.arange(M)
    p, q = (np.full((M, 10), 0.05) for _ in range(2))
    p[place, labels], q[place, labels] = 0.3 + 0.004 * place, 0.1
    p[place, owner[1].true_labels[:, 0]], q[place, owner[1].true_labels[:, 0]] = 0.1, 0.5
    of = lambda p: Answers(p.argmax(1), p)
    wanted = paired_t(p[place, labels], q[place, labels])
    assert wanted < -10
    case = OwnershipCase(read_owner(owner[0])._replace(uniform=False), [of(q)] * 5, 1e-3)
    assert case.tests(of(p))["T3"]["log10_p"] == pytest.approx(wanted)
    tests = TriggerTests(owner[1], 10, True)
    tests.bank = [("benign", torch.from_numpy(q / q.sum(1, keepdims=True)).log(), None)]
    found = tests.figures(torch.from_numpy(p / p.sum(1, keepdims=True)).log())["log10_p"]["T3"]
    normal = [part[place, labels] / part.sum(1) for part in (p, q)]
    assert found == pytest.approx(paired_t(*normal))


def test_stopping_early_reports_no_p_value_but_the_sequential_tests_and_lifts_no_refusal(owner):
    copy = Answers(owner[1].labels.numpy(), None)
    report, refused = (case_of(owner, bank).report(copy, range(10), stopped=True) for bank in ([], [copy]))
    assert report["decision"]["holds"] and not refused["decision"]["holds"]
    assert report["sequential"]["decision"] == refused["sequential"]["decision"] == "claim"
    assert all(test["log10_p"] is None for test in report["tests"].values())
    assert "decided when to stop" in report["tests"]["T1"]["why_not"] and "log10_p" not in report["decision"]
    assert case_of(owner).report(copy, range(10))["tests"]["T1"]["log10_p"] is not None


def test_the_sequential_test_counts_a_missing_answer_as_the_exact_ones_do(owner):
    silent = Answers(np.full(M, -1), None)
    assert case_of(owner).sequence(silent, range(M))["decision"] == "no claim"
    left_out = case_of(owner, count_missing=False).sequence(silent, range(M))
    assert left_out["decision"] == "undecided" and left_out["log10_likelihood_ratio"] == 0
