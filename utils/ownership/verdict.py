"""From a suspect's answers to a decision: for the owner it rests on T1 and T1p where he says that the labels were drawn
uniformly, else on T2 where the suspect also has more hits than every benign model. For a stranger it rests on T1 and
T1p of labels that public randomness drew, and on nothing else. T3 and T4 are reported and never decide.
"""

import math

import numpy as np

from utils.answers.answers import Answers
from utils.ownership import pvalues
from utils.ownership.commitment import Owner
from utils.system.refusals import Refusal
from utils.watermark.prepared import never_claimed

MIN_BANK = 5  # smallest number of benign models that shows T2 and T3 how such models vary
RATE = 0.5  # H1 of the sequential test: the suspect hits at least this often, (1 + p) / 2 where chance p is as high
BETA = 0.05  # probability that the sequential test gives such a suspect up; it may also run out of triggers
EXACT = ("both", "T1", "T1p")  # what may be named beforehand as the exact test that decides


class OwnershipCase:
    """One owner's triggers and a bank of benign models' answers; judges a suspect's answers at level alpha.

    stranger       whether the one who decides does not trust the owner
    doubts         what evidence is missing or fails; with any of it the claim does not hold
    count_missing  whether T1 and T1p take a missing answer for the worst one
    exact          one of `EXACT`; "both" doubles the smaller p, and is T1 alone of a suspect without probabilities

    t1_fails, t2_fails  why T1 and T1p, or T2, do not apply; None where they do
    refused             why nothing can be claimed, whatever the answers are; None where something can
    """

    def __init__(self, owner: Owner, bank: list[Answers], alpha: float, *, stranger: bool = False, doubts=(),
                 count_missing: bool = True, exact: str = "both"):
        t, self.classes = owner.triggers, len(owner.classes)
        self.bank, self.alpha, self.stranger = bank, alpha, stranger
        self.count_missing, self.exact = count_missing, exact
        self.assigned, self.true, self.candidates = t.labels.numpy(), t.true_labels.numpy(), t.candidates.numpy()
        self.plausible, self.groups = self.candidates.shape[1] > 0, t.groups.numpy()
        self.allowed = pvalues.drawn_from((len(t), self.classes), self.true, self.candidates)
        self.benign_hits = [int(self.hits(b).sum()) for b in bank]
        self.t1_fails = self.t2_fails = self.refused = None
        if not owner.uniform:
            self.t1_fails = "the labels were not drawn uniformly from those that are possible"
        elif not (self.true.shape[1] or self.plausible) or pvalues.chances(self.allowed).max() >= 1:
            self.t1_fails = "no wrong label is left to chance"
        if len(self.groups):
            self.t2_fails = "triggers share draws, so that hits depend on each other"
        elif len(bank) < MIN_BANK:
            self.t2_fails = f"it needs a bank of {MIN_BANK} benign models or more; --benign names {len(bank)}"
        if doubts or (stranger and self.t1_fails):
            self.refused = "; ".join(doubts) or f"T1 does not apply, for {self.t1_fails}; --trust-owner decides on T2"
        elif self.t1_fails and self.t2_fails:
            self.refused = f"no test can decide: T1 does not apply, for {self.t1_fails}; T2: {self.t2_fails}"
        elif self.t1_fails is None and (hopeless := never_claimed(t, self.classes, alpha)):
            self.refused = hopeless
        elif self.t1_fails is None and (false := sum(self.exact_test(b)[1] <= math.log10(alpha) for b in bank)):
            self.refused = (f"the test would claim {false} of the {len(bank)} benign models too, so its labels "
                            "were not drawn at random, or the bank's models are not benign")

    def hits(self, answers: Answers):
        """(m,) whether the suspect gave the assigned label."""
        return answers.labels == self.assigned

    def counted(self, answers: Answers):
        """(m,) each: which answers count, and how likely an independent model hits, by T1, or by T2 without T1."""
        if self.t1_fails is None:
            return pvalues.trials(answers.labels, self.allowed, self.count_missing), pvalues.chances(self.allowed)
        m = len(self.assigned)
        bound = min(pvalues.upper_bound(sum(self.benign_hits), m * len(self.bank)), 1 - 1e-9)
        return np.ones(m, dtype=bool), np.full(m, bound)

    def tests(self, answers: Answers) -> dict:
        """{"T1": {"log10_p", "why_not"}, ...} for T1, T1p, T2, T3, T4: the p-value, or why the test does not apply."""
        k, m, soft = int(self.hits(answers).sum()), len(self.assigned), answers.probabilities is not None
        t1p_fails = self.t1_fails or (None if soft else "the suspect gives labels alone, and it needs probabilities")
        score = lambda a: a.probabilities[np.arange(m), self.assigned] if soft else self.hits(a)
        test = lambda fails, compute: {"log10_p": None if fails else compute(), "why_not": fails}
        return {
            "T1": test(self.t1_fails, lambda: pvalues.label_randomisation(
                answers.labels, self.assigned, self.true, self.classes, candidates=self.candidates,
                count_missing=self.count_missing, groups=self.groups)),
            "T1p": test(t1p_fails, lambda: pvalues.score_randomisation(
                answers.probabilities, self.assigned, self.true, self.candidates, self.groups, self.count_missing)),
            "T2": test(self.t2_fails, lambda: pvalues.benign_rate(k, m, sum(self.benign_hits), m * len(self.bank))),
            "T3": test(self.t2_fails or ("it needs two triggers" if m < 2 else None),
                       lambda: pvalues.paired_t(score(answers), [score(b) for b in self.bank])),
            "T4": test(None if self.bank else "it needs benign models; --benign names none",
                       lambda: pvalues.rank(k, self.benign_hits)),
        }

    def exact_test(self, answers: Answers) -> tuple[str, float]:
        """(name, log10 p) of the exact test that was named beforehand; Refusal where T1p was and does not apply."""
        tests = self.tests(answers)
        if self.exact == "T1p" and tests["T1p"]["why_not"]:
            raise Refusal(f"--test T1p does not apply: {tests['T1p']['why_not']}; pass --test T1")
        names = ("T1", "T1p") if self.exact == "both" else (self.exact,)
        p = {name: tests[name]["log10_p"] for name in names if tests[name]["why_not"] is None}
        return " and ".join(p), pvalues.bonferroni(*p.values())

    def decide(self, answers: Answers, asked=slice(None)) -> dict:
        """{"holds", "rests_on", "why", "log10_p"}, the last missing where the claim is refused without a p-value.

        asked  positions of the triggers that were asked, where the answers decided on their number
        """
        if self.refused:
            return {"holds": False, "rests_on": None, "why": self.refused}
        if self.t1_fails is None:
            name, p = self.exact_test(answers)
            why = ("public randomness drew the labels after the images were fixed, so it is exact, whoever lies, if "
                   "the owner made no other commitment and asked no other suspects" if self.stranger else
                   "the owner says that the labels were drawn uniformly, so it is exact, whatever the suspect is")
            how = "T1p is not run" if name == "T1" else "p is the smaller of the two, doubled"
            why += f"; {how if self.exact == 'both' else f'and if {name} was named before the suspect was asked'}"
        else:
            k, *bank = [int(self.hits(of)[asked].sum()) for of in (answers, *self.bank)]
            if k <= (best := max(bank)):
                return {"holds": False, "rests_on": "T2",
                        "why": f"a benign model hits {best} of the triggers, no fewer than the suspect"}
            name, p = "T2", self.tests(answers)["T2"]["log10_p"]
            why = (f"T1 does not apply ({self.t1_fails}); T2 compares with {len(self.bank)} benign models and is as "
                   "good as they are like the suspect")
        return {"holds": bool(p <= math.log10(self.alpha)), "rests_on": name, "why": why, "log10_p": p}

    def report(self, answers: Answers, order=None, stopped: bool = False) -> dict:
        """All figures of a claim, for the JSON and for its text.

        order    positions of the triggers that were asked, in order; None: all of them
        stopped  whether the answers decided on the number of queries, which only the sequential test allows for
        """
        hits, tests = self.hits(answers), self.tests(answers)
        order = list(range(len(hits)) if order is None else order)
        decision = self.decide(answers, order if stopped else slice(None))
        sequential = None if len(self.groups) else self.sequence(answers, order)  # it counts triggers one by one
        if stopped:
            why = "the answers decided when to stop asking; only the sequential test allows for that"
            tests = {name: {"log10_p": None, "why_not": test["why_not"] or why} for name, test in tests.items()}
            if "log10_p" in decision:  # else it was refused whatever the test says
                said = f"said {sequential['decision']!r} after {sequential['queries']} queries"
                decision = {"holds": sequential["decision"] == "claim", "rests_on": "SPRT",
                            "why": f"Wald's test, which may stop at any time, {said}"}
        return {
            "hits": int(hits.sum()), "triggers": len(hits), "answered": int((answers.labels >= 0).sum()),
            "alpha": self.alpha, "bank": len(self.bank), "hint": self.hint(answers), "plausible": self.plausible,
            "shared_draws": bool(len(self.groups)),
            "decided_for": "a stranger" if self.stranger else "the owner", "tests": tests, "decision": decision,
            "sequential": sequential,
        }

    def hint(self, answers: Answers) -> str | None:
        """A sentence where the answers look as if the suspect was asked in a wrong way, else None."""
        given = answers.labels[answers.labels >= 0]
        most, hits = int(np.bincount(given).max(initial=0)), self.hits(answers)
        known = int((hits | (answers.labels[:, None] == self.true).any(axis=1)).sum())
        enough = 0.6 * len(given)  # triggers of EWE and RS bear one label, so that hits are equal answers
        if hits.sum() >= enough or (most < enough and (known >= enough or not self.true.shape[1])):
            return None
        return (f"the same answer to {most} of {len(given)} triggers, a true or assigned label to {known}: if it does "
                "better on its own images, its classes are in another order (--columns) or numbered from 1, a file's "
                "rows are in another order, or an ONNX file or weights want other pixels (--mean, --std, --scale)")

    def sequence(self, answers: Answers, order) -> dict:
        """Wald's sequential test on the answers in `order`: {"decision", "queries", "log10_likelihood_ratio", ...}.

        On the answers that count, H0: a hit has the probability of `counted`, H1: `RATE`. It claims at a likelihood
        ratio of 1 / alpha and gives up at BETA: by Ville's inequality its errors are at most these whenever it stops.
        """
        hits, (counts, p0) = self.hits(answers), self.counted(answers)
        meaning = ("the benign models' 95 % upper bound" if self.t1_fails else "1 / candidates among answers that are "
                   "candidates" if self.plausible else "1 / (classes - true labels) among wrong answers")
        p1 = np.where(p0 < RATE, RATE, (1 + p0) / 2)
        steps = np.where(hits, np.log(p1 / p0), np.log((1 - p1) / (1 - p0))) * counts
        llr = np.cumsum(steps[list(order)])
        ends = np.flatnonzero((llr >= -math.log(self.alpha)) | (llr <= math.log(BETA)))
        queries = int(ends[0]) + 1 if len(ends) else len(llr)
        found = float(llr[queries - 1])
        return {"decision": "undecided" if not len(ends) else "claim" if found > 0 else "no claim", "queries": queries,
                "log10_likelihood_ratio": found / math.log(10), "H0": f"hit rate {p0.max():.4g} ({meaning})",
                "H1": f"hit rate {p1.max():.4g}", "alpha": self.alpha, "beta": BETA}
