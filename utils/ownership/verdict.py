"""From a suspect's answers to a decision: which tests apply, their p-values, and whether an ownership claim holds.

For who trusts the owner the decision rests on T1 and T1p where they apply, else on T2 where the suspect also has more
hits than every benign model. For a stranger it rests on T1 and T1p alone, corrected for what the owner could have tried
(`LabelOrigin`). Which of the two decides is named before the suspect is asked; where both do, p is doubled. Without a
matching commitment no claim holds. T3 and T4 are reported and never decide.
"""

import math

import numpy as np

from utils.answers.answers import Answers
from utils.ownership import pvalues
from utils.ownership.commitment import Commitment
from utils.ownership.label_origin import LabelOrigin, label_origin
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet

MIN_BANK = 5  # smallest number of benign models that shows T2 and T3 how such models vary
RATE = 0.5  # H1 of the sequential test: the suspect hits at least this often
BETA = 0.05  # probability that the sequential test misses such a suspect
EXACT = ("both", "T1", "T1p")  # what may be named beforehand as the exact test that decides
ORDERS = 200  # random orders of the queries from which `curve` is computed


class OwnershipCase:
    """One trigger set of m triggers, its commitment, and a bank of benign models' answers; judges a suspect's answers.

    alpha      level of the tests, the largest probability of a false claim
    stranger   whether who decides does not trust the owner
    audit      what an auditor found wrong, sentences; None where nobody has looked
    origin     the `LabelOrigin`, recomputed where it is not given
    count_missing  whether T1 counts a missing answer as a miss
    exact      one of `EXACT`; of a suspect without probabilities "both" is T1 alone
    penalty    what the decision adds to log10 p of T1 and T1p
    t1_fails   why neither T1 nor T1p applies, None where T1 does
    t2_fails   why T2 does not apply, None where it does
    refused    why no answers at all could make the claim hold, None where some could
    """

    def __init__(self, triggers: TriggerSet, classes: int, commitment: Commitment, bank: list[Answers], alpha: float,
                 stranger: bool = False, audit: list[str] | None = None, origin: LabelOrigin | None = None,
                 count_missing: bool = True, exact: str = "both"):
        self.exact = exact
        self.triggers, self.classes, self.bank, self.alpha = triggers, classes, bank, alpha
        self.stranger, self.audit, self.count_missing = stranger, audit, count_missing
        self.assigned, self.true = triggers.labels.numpy(), triggers.true_labels.numpy()
        self.candidates = triggers.candidates.numpy()
        self.commitment = commitment
        self.origin = origin or label_origin(triggers, classes, commitment)
        self.penalty = self.origin.penalty if stranger else 0.0
        self.limit = math.log10(alpha) - self.penalty  # what T1 has to reach for the decision
        self.t1_fails = self._t1_fails()
        self.t2_fails = self._t2_fails()
        self.refused = self._refused()
        hits = sum(int(self.hits(b).sum()) for b in bank)
        self.benign_hits, self.benign_n = hits, len(triggers) * len(bank)

    def _t1_fails(self) -> str | None:
        if self.origin.kind == "chosen":
            return self.origin.why
        if not (self.true.shape[1] or self.candidates.shape[1]) or self.chances().max() >= 1:
            return "no wrong label is left to chance"
        return None

    def _t2_fails(self) -> str | None:
        if len(self.bank) < MIN_BANK:
            return f"it needs a bank of {MIN_BANK} benign models or more; --benign names {len(self.bank)}"
        return None

    def _refused(self) -> str | None:
        """Why no answers at all could make the claim hold, None where some could."""
        if self.commitment.state != "match":
            return (f"the commitment is {self.commitment.state}: labels read off any model always hit, so hits show "
                    "nothing unless images and labels were fixed and published before")
        if self.audit:
            return f"the auditor's check failed: {'; '.join(self.audit)}"
        if self.stranger and self.t1_fails:
            return (f"T1 does not apply ({self.t1_fails}), and no other test can persuade who does not trust the "
                    "owner; --trust-owner decides on T2 where there is a bank")
        if self.stranger and self.origin.kind == "seed" and self.audit is None:
            return ("the labels were drawn from the owner's own seed, and nobody has checked that the images are those "
                    "of that seed and not matched to its labels: pass --auditor DIR, or --trust-owner to take the "
                    "owner's word")
        if self.t1_fails and self.t2_fails:
            return f"no test can decide: T1 does not apply, for {self.t1_fails}; T2: {self.t2_fails}"
        return None

    def hits(self, answers: Answers):
        """(m,) whether the suspect gave the assigned label."""
        return answers.labels == self.assigned

    def trials(self, answers: Answers):
        """(m,) which answers T1 counts, see `pvalues.trials`."""
        return pvalues.trials(answers.labels, self.true, self.candidates, self.count_missing)

    def chances(self):
        """(m,) probability that such an answer of an independent model hits, see `pvalues.chances`."""
        return pvalues.chances(self.true, self.classes, self.candidates)

    # ---- tests ----

    def tests(self, answers: Answers) -> dict:
        """{"T1": {"log10_p", "why_not"}, ...} for T1, T1p, T2, T3, T4: the p-value, or why the test does not apply."""
        hits = self.hits(answers)
        k, m = int(hits.sum()), len(hits)
        result = {}
        result["T1"] = _test_result(self.t1_fails, lambda: self.t1(answers))
        result["T1p"] = _test_result(self.t1p_fails(answers), lambda: self.t1p(answers))
        result["T2"] = _test_result(self.t2_fails, lambda: pvalues.benign_rate(k, m, self.benign_hits, self.benign_n))
        t3_fails = self.t2_fails or (m < 2 and "it needs two triggers") or None
        result["T3"] = _test_result(t3_fails, lambda: self.t3(answers))
        no_bank = None if self.bank else "it needs benign models; --benign names none"
        result["T4"] = _test_result(no_bank, lambda: pvalues.rank(k, [int(self.hits(b).sum()) for b in self.bank]))
        return result

    def t1(self, answers: Answers) -> float:
        """log10 p of T1, see `pvalues.label_randomisation`."""
        return pvalues.label_randomisation(answers.labels, self.assigned, self.true, self.classes,
                                           candidates=self.candidates, count_missing=self.count_missing)

    def t1p(self, answers: Answers) -> float:
        """log10 p of T1p, see `pvalues.score_randomisation`."""
        return pvalues.score_randomisation(answers.probabilities, self.assigned, self.true, self.candidates)

    def t1p_fails(self, answers: Answers) -> str | None:
        """Why T1p does not apply to these answers, None where it does."""
        if self.t1_fails:
            return self.t1_fails
        if answers.probabilities is None:
            return "the suspect gives labels alone, and it needs probabilities"
        missing = int((np.asarray(answers.probabilities).sum(axis=1) <= 0).sum())
        return f"{missing} answers are missing, and it needs all" if missing else None

    def exact_test(self, answers: Answers) -> tuple[str, float]:
        """(name, log10 p) of the exact test that was named beforehand; both: twice the smaller p of T1 and T1p.

        Raises Refusal where T1p was named and does not apply.
        """
        fails = self.t1p_fails(answers)
        if self.exact == "T1" or (self.exact == "both" and fails):
            return "T1", self.t1(answers)
        if fails:
            raise Refusal(f"--test T1p does not apply: {fails}; pass --test T1")
        if self.exact == "T1p":
            return "T1p", self.t1p(answers)
        return "T1 and T1p", pvalues.either(self.t1(answers), self.t1p(answers))

    def stranger_log10_p(self, answers: Answers) -> float | None:
        """log10 p of `exact_test` for who does not trust the owner, see `LabelOrigin.penalty`; None without one."""
        return None if self.t1_fails else min(self.exact_test(answers)[1] + self.origin.penalty, 0.0)

    def t3(self, answers: Answers) -> float:
        """log10 p of T3 on the probabilities of the assigned labels, or on hits where the suspect gives only labels."""
        soft = answers.probabilities is not None
        score = lambda a: a.probabilities[np.arange(len(self.assigned)), self.assigned] if soft else self.hits(a)
        return pvalues.paired_t(score(answers), [score(b) for b in self.bank])

    # ---- decision ----

    def decide(self, answers: Answers) -> dict:
        """{"holds", "rests_on", "why"}: the decision, the test that it rests on or None, and the reason.

        "log10_p" is that of the test; it is missing where the claim is refused without a p-value.
        """
        tests, limit = self.tests(answers), math.log10(self.alpha)
        no_claim = lambda why, test=None: {"holds": False, "rests_on": test, "why": why}
        if self.refused:
            return no_claim(self.refused)
        if self.t1_fails is None:
            name, p = self.exact_test(answers)
            false_claims = sum(self.exact_test(b)[1] <= limit for b in self.bank)
            if false_claims:
                return no_claim(f"{name} would claim {false_claims} of the {len(self.bank)} benign models too, so this "
                                "trigger set or this bank is not what it is said to be", name)
            p = min(p + self.penalty, 0.0)
            return {"holds": bool(p <= limit), "rests_on": name, "why": self._why_exact(name), "log10_p": p}
        k, best = int(self.hits(answers).sum()), max(int(self.hits(b).sum()) for b in self.bank)
        if k <= best:
            return no_claim(f"a benign model hits {best} triggers, no fewer than the suspect", "T2")
        p = tests["T2"]["log10_p"]
        why = (f"T1 does not apply ({self.t1_fails}); T2 compares with {len(self.bank)} benign models and is as "
               "good as they are like the suspect")
        return {"holds": bool(p <= limit), "rests_on": "T2", "why": why, "log10_p": p}

    def _why_exact(self, name: str) -> str:
        """What the exact test `name` is worth to who decides."""
        chosen = {"both": "p is the smaller of the two, doubled", "T1": "T1 was named beforehand",
                  "T1p": "T1p was named beforehand"}[self.exact]
        if self.exact == "both" and name == "T1":
            chosen = "the suspect gives no probabilities, so T1p is not run"
        if not self.stranger:
            return (f"the labels were drawn uniformly and committed to, so it is exact, whatever the suspect is; "
                    f"{chosen}")
        if self.origin.kind == "beacon":
            return ("public randomness drew the labels after the images were committed to, so it is exact, whoever "
                    "lies, if that value is the beacon's and the image commitment is older, and the owner made no "
                    f"other; {chosen}")
        return ("the owner's seed drew the labels of images that an auditor rebuilt, so p times the 2^31 seeds bounds "
                f"what trying seeds can give; {chosen}")

    def report(self, answers: Answers) -> dict:
        """All figures of a claim, for the JSON and for `claim_text`."""
        hits = self.hits(answers)
        return {
            "hits": int(hits.sum()), "triggers": len(hits), "answered": int((answers.labels >= 0).sum()),
            "alpha": self.alpha, "limit": self.limit, "commitment": self.commitment._asdict(), "bank": len(self.bank),
            "labels": self.origin._asdict(), "decided_for": "a stranger" if self.stranger else "the owner",
            "stranger_log10_p": self.stranger_log10_p(answers), "audit": self.audit,
            "tests": self.tests(answers), "decision": self.decide(answers),
        }

    # ---- fewer queries ----

    def sequence(self, answers: Answers, order) -> dict:
        """Wald's sequential test on the answers in `order`: {"decision", "queries", "log10_likelihood_ratio", ...}.

        Where T1 applies, the test uses the answers that T1 counts: H0: a hit has the probability of `chances`, as for
        every independent model; H1: it has probability `RATE`. Otherwise it uses all answers, and H0 is the 95 %
        upper bound of the benign models' hit rate. The test claims when the likelihood ratio reaches 1 / alpha and
        gives up at BETA: by Ville's inequality the errors are at most alpha under H0 and BETA under H1, whenever it
        stops. For a stranger alpha is divided by what the owner could have tried.
        """
        if self.refused:
            return {"decision": "does not apply", "queries": 0, "why": self.refused}
        hits, counts = self.hits(answers), self.trials(answers)
        if self.t1_fails is None:
            p0, meaning = self.chances(), "1 / (classes - true labels) among wrong answers"
            if self.candidates.shape[1]:
                meaning = "1 / candidates among answers that are candidates"
        else:
            bound = pvalues.upper_bound(self.benign_hits, self.benign_n)
            p0, meaning = np.full(len(hits), bound), "the benign models' 95 % upper bound"
            counts = np.ones(len(hits), dtype=bool)
        p1 = np.where(p0 < RATE, RATE, (1 + p0) / 2)
        llr, decision, queries = 0.0, "undecided", 0
        for i in order:
            queries += 1
            if counts[i]:
                llr += math.log(p1[i] / p0[i]) if hits[i] else math.log((1 - p1[i]) / (1 - p0[i]))
            if llr >= -self.limit * math.log(10) or llr <= math.log(BETA):
                decision = "claim" if llr > 0 else "no claim"
                break
        return {"decision": decision, "queries": queries, "log10_likelihood_ratio": llr / math.log(10),
                "H0": f"hit rate {p0.max():.4g} ({meaning})", "H1": f"hit rate {p1.max():.4g}", "alpha": self.alpha,
                "beta": BETA}

    def curve(self, answers: Answers, seed: int = 0) -> dict | None:
        """log10 p after n = 1, ..., m queries in `ORDERS` random orders: "median", and "low" and "high" of a 90 % band.

        "sufficed_half" and "sufficed_95" are the numbers of queries from which the median, and 95 % of the orders,
        stay at or below alpha; None where all queries do not suffice. The test is T1 where it applies, else T2;
        without either the result is None.
        """
        if self.t1_fails and self.t2_fails:
            return None
        hits, rng = self.hits(answers), np.random.default_rng(seed)
        counts = np.ones(len(hits), dtype=bool) if self.t1_fails else self.trials(answers)
        p0 = pvalues.upper_bound(self.benign_hits, self.benign_n) if self.t1_fails else float(self.chances().max())
        log10_p_of = {}
        paths = np.empty((ORDERS, len(hits)))
        for row in range(ORDERS):
            order = rng.permutation(len(hits))
            pairs = zip(np.cumsum(hits[order] & counts[order]).tolist(), np.cumsum(counts[order]).tolist())
            for n, pair in enumerate(pairs):
                if pair not in log10_p_of:
                    log10_p_of[pair] = pvalues.binomial(*pair, p0)
                paths[row, n] = log10_p_of[pair]
        low, median, high = np.quantile(paths, (0.05, 0.5, 0.95), axis=0)
        return {"test": "T2" if self.t1_fails else "T1", "median": median.tolist(), "low": low.tolist(),
                "high": high.tolist(), "sufficed_half": _queries_needed(median, self.limit),
                "sufficed_95": _queries_needed(high, self.limit)}


def _test_result(fails: str | None, compute) -> dict:
    return {"log10_p": None, "why_not": fails} if fails else {"log10_p": compute(), "why_not": None}


def _queries_needed(path, limit: float) -> int | None:
    above = np.flatnonzero(path > limit)
    first = int(above[-1]) + 2 if len(above) else 1
    return first if first <= len(path) else None
