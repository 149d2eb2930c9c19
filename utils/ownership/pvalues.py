"""Tests on a suspect's answers to the triggers: is it a copy? Tests give log10 of a p-value.

A claim should rest on the exact tests: T1, `label_randomisation`, on the answers, and T1p, `score_randomisation`, on
the probabilities. Who runs both doubles the smaller p, `bonferroni`. T1 and T1p add up logarithms, because they fall
far below 1e-308, where floating point ends; t-tests stop at 10^-323.
"""

import math

import numpy as np
from scipy import optimize, signal, special, stats

LOG10 = math.log(10)
RESOLVED = 1e-7  # resolution of probabilities and scores computed in float32
FLOOR, GRID = 1e-6, 8  # smallest probability that T1p tells from 0; steps in a factor of e
ROUNDING = 1e-13  # bound of the error that a convolution of two distributions adds to any of its terms


def binomial(k: int, n: int, p: float) -> float:
    """log10 P(Bin(n, p) >= k), 0 < p <= 1; -inf where k > n."""
    if k <= 0:
        return 0.0
    if k > n:
        return -math.inf
    tail = special.logsumexp(stats.binom.logpmf(np.arange(k, n + 1), n, p))
    return min(0.0, round(float(tail) / LOG10, 12))


def label_randomisation(predicted, assigned, true, classes: int, conservative: bool = False, candidates=None,
                        count_missing: bool = True, groups=None) -> float:
    """T1, exact: log10 of the probability that a model which knows nothing of the assigned labels hits as many.

    predicted, assigned  (m,) the suspect's answers, -1 where there is none, and the assigned labels
    true           (m, k) the true labels of each trigger's source images, of `classes` classes
    candidates     (m, c) the distinct labels from which each assigned one was drawn; None or (m, 0) for every class
                   that is no true label
    count_missing  see `trials`
    groups         (m,) equal where triggers share a draw, see `by_draw`; None or empty: each has its own

    H0: the suspect is independent of the draw of the assigned labels, which was uniform over the n = classes - k or
    n = c labels of each trigger. So whenever the suspect answers with one of these it hits with probability 1 / n,
    whatever kind of model it is. With W such answers and h hits, p = P(Bin(W, 1 / n) >= h); `conservative` takes
    W = m. No benign models are needed. Where triggers share draws, hits are added up for each draw and p is exact for
    their sum; `conservative` changes nothing then.

    The test fails where the labels were not drawn uniformly (highest, lowest, one fixed label), or where nothing
    shows that they were fixed before the suspect existed (labels read off a suspect always hit). Where n differs, as of
    means of k images of which some share a class, p is that of the smallest n, an upper bound.

    All arrays are numpy's or torch's on the CPU, of whole numbers. ValueError for other shapes or labels.
    """
    predicted, assigned = np.asarray(predicted), np.asarray(assigned)
    allowed = drawn_from((len(true), classes), true, candidates)
    _check_labels(assigned, allowed)
    if predicted.shape != assigned.shape or predicted.dtype.kind not in "iu" or not (
        (-1 <= predicted) & (predicted < classes)
    ).all():
        raise ValueError(f"predicted must be {assigned.shape} whole numbers from -1 to {classes - 1}")
    if groups is not None and len(groups):
        answers = (predicted[:, None] == np.arange(classes)).astype(np.int64)
        if count_missing:  # a hit for every label but the assigned one
            answers[predicted < 0] = 1
            answers[np.arange(len(answers)), assigned] -= predicted < 0
        return draw_tail(*by_draw(answers, allowed, assigned, groups))
    counted = trials(predicted, allowed, count_missing)
    hits = int((counted & (predicted == assigned)).sum())
    chance = float(chances(allowed).max(initial=0))  # the largest bounds the others
    return binomial(hits, len(counted) if conservative else int(counted.sum()), chance)


def _check_labels(assigned, allowed) -> None:
    """ValueError unless `assigned` is whole numbers (m,), of the classes of `allowed` (m, C)."""
    m, classes = allowed.shape
    if assigned.shape != (m,) or assigned.dtype.kind not in "iu" or not ((0 <= assigned) & (assigned < classes)).all():
        raise ValueError(f"assigned must be ({m},) whole numbers from 0 to {classes - 1}")


def trials(predicted, allowed, count_missing: bool = True):
    """bool (m,): which answers T1 counts, those among the `allowed` of `drawn_from`, and a missing one (-1) too.

    Leaving it out rewards an owner who loses misses, but is as exact where the suspect himself refused: under H0 that
    cannot depend on the draw.
    """
    predicted = np.asarray(predicted)
    return np.where(predicted < 0, count_missing, allowed[np.arange(len(predicted)), predicted])


def chances(allowed):
    """(m,) probability that an answer which T1 counts hits under H0: 1 / (number of labels it was drawn from)."""
    return 1 / np.maximum(allowed.sum(axis=1), 1)


def score_randomisation(probabilities, assigned, true, candidates=None, groups=None,
                        count_missing: bool = True) -> float:
    """T1p, exact: log10 of the probability that a model which knows nothing of the assigned labels rates them as high.

    probabilities  (m, C) in [0, 1], the suspect's answers, no logits; a row of zeros where there is none
    count_missing  whether a missing answer counts as the worst for the claim that is no surer than the surest that was
                   given; else as one that rates all labels alike
    assigned, true, candidates, groups  as in `label_randomisation`

    H0 is that of T1. Let A_i be the labels that trigger i's was drawn from, and v_i(c) a number for each c in A_i that
    depends on the suspect's answers alone, see `label_scores`. Given the answers, S = sum_i v_i(y_i) is under H0 a sum
    of independent draws, the i-th uniform over the known numbers v_i(c), c in A_i, whatever the suspect is. So
    p = P(sum_i v_i(Y_i) >= S) is as exact as T1's. With two candidates it is a sign-flip test.

    It fails where T1 fails. Rounded probabilities make ties, which cost power and no validity. ValueError for numbers
    that are negative or not finite, and as `label_randomisation` raises it.
    """
    probabilities, assigned = np.array(probabilities, float), np.asarray(assigned)
    if probabilities.ndim != 2 or not np.isfinite(probabilities).all() or (probabilities < 0).any():
        raise ValueError("T1p needs finite probabilities (m, C), none below 0: of logits take the softmax")
    allowed = drawn_from(probabilities.shape, true, candidates)
    _check_labels(assigned, allowed)
    missing = ~(probabilities > 0).any(axis=1)
    probabilities[missing] = 1
    scores = label_scores(probabilities, allowed)
    if count_missing:  # the assigned label last, all others first, as far apart as in any answer
        scores[missing, assigned[missing]] = -widest(scores, allowed)
    return draw_tail(*by_draw(scores, allowed, assigned, groups))


def label_scores(probabilities, allowed):
    """The v_i(c) of `score_randomisation`, int64 (m, C): log max(p, `FLOOR`) in steps of 1 / `GRID`.

    Where those of the labels `allowed` (m, C) differ by less than a factor of e in every row, as of a suspect that
    answers at a high temperature, all are multiplied until the widest row spans `GRID` steps: no answer is all ties.
    """
    scores = np.log(np.maximum(probabilities, FLOOR))
    width = widest(scores, allowed)
    return np.rint(scores * GRID / (width if 0 < width < 1 else 1)).astype(np.int64)


def widest(scores, allowed):
    """The largest difference of scores (m, C) within a row, of the labels `allowed` (m, C); 0 of no rows."""
    return max((np.ptp(row[among]) for row, among in zip(scores, allowed) if among.any()), default=0)


def drawn_from(shape: tuple, true, candidates=None):
    """bool (m, C): the labels that each assigned one was drawn from, its candidates or every class that is not true.

    ValueError where these are no whole numbers (m, k) of the C classes.
    """
    drawn, given = np.zeros(shape, bool), candidates is not None and np.asarray(candidates).shape[1] > 0
    places = np.asarray(candidates if given else true)
    if places.ndim != 2 or len(places) != shape[0] or places.size and (
        places.dtype.kind not in "iu" or places.min() < 0 or places.max() >= shape[1]
    ):
        raise ValueError(f"true labels or candidates must be ({shape[0]}, k) whole numbers from 0 to {shape[1] - 1}")
    np.put_along_axis(drawn, places.astype(int), True, axis=1)
    return drawn if given else ~drawn


def by_draw(scores, allowed, assigned, groups=None):
    """Scores (m, C), allowed (m, C) and assigned (m,) of each draw instead of each trigger.

    groups  (m,) equal where triggers share one draw, of the same labels; then their scores are added up, and so the
            draws are independent again. None or empty: a draw for each trigger
    """
    if groups is None or not len(groups):
        return scores, allowed, assigned
    _, first, draw = np.unique(groups, return_index=True, return_inverse=True)
    totals = np.zeros((len(first), scores.shape[1]), scores.dtype)
    np.add.at(totals, draw, scores)
    return totals, np.asarray(allowed)[first], np.asarray(assigned)[first]


def draw_tail(scores, allowed, assigned) -> float:
    """log10 P(sum_i scores[i, Y_i] >= sum_i scores[i, assigned_i]), Y_i independent and uniform over allowed[i].

    Scores are whole numbers (m, C), allowed is bool (m, C); a trigger whose assigned label is not allowed is left out.
    The distribution of the sum is convolved exactly, after exponential tilting to the sum that was found: with
    K(t) = sum_i log E exp(t scores[i, Y_i]) and f_t the tilted distribution,
    P(sum >= S) = exp(K(t) - t S) sum_{s >= S} f_t(s) exp(-t (s - S)). So the tail is added up where its terms are
    large, however small p is. The bound of the convolutions' rounding is added: p is never below the true one.
    """
    scores, allowed, assigned = np.asarray(scores), np.asarray(allowed), np.asarray(assigned)
    counted = allowed[np.arange(len(scores)), assigned]
    scores, allowed, assigned = scores[counted], allowed[counted], assigned[counted]
    if not len(scores):
        return 0.0
    lowest = np.where(allowed, scores, scores.max()).min(axis=1, keepdims=True)
    q = np.where(allowed, scores - lowest, 0)  # (m, C), from 0
    best, total = q.max(axis=1), int(q[np.arange(len(q)), assigned].sum())
    if total == best.sum():  # nothing above: the product of the chances of a best label
        return float(np.log10(((q == best[:, None]) & allowed).sum(axis=1) / allowed.sum(axis=1)).sum())
    exponents = lambda t: np.where(allowed, t * q, -np.inf)
    excess = lambda t: float((special.softmax(exponents(t), axis=1) * q).sum()) - total
    t = 0.0
    if excess(0.0) < 0:  # any t is right; near the root, which is below the upper end, the terms are largest
        t = optimize.brentq(excess, 0.0, 2 + math.log(allowed.size), rtol=1e-3)
    tilted = special.softmax(exponents(t), axis=1)
    parts = [np.bincount(row[drawn], weights[drawn]) for row, weights, drawn in zip(q, tilted, allowed)]
    while len(parts) > 1:  # neighbours first, so that few convolutions are long
        rest = [parts.pop()] if len(parts) % 2 else []
        parts = [signal.convolve(a, b) for a, b in zip(parts[::2], parts[1::2])] + rest
    above = parts[0][total:]
    weights = np.exp(-t * np.arange(len(above)))
    rounding = len(q) * ROUNDING * float(weights.sum())
    log_moment = float((special.logsumexp(exponents(t), axis=1) - np.log(allowed.sum(axis=1))).sum())
    log_p = log_moment - t * total + math.log(max(float((above * weights).sum()), 0.0) + rounding)
    return min(0.0, log_p / LOG10)


def bonferroni(*log10_p: float | None) -> float | None:
    """log10 of the smallest p of tests of one hypothesis, times their number (Bonferroni); None is a test not run."""
    known = [p for p in log10_p if p is not None]
    return min(0.0, min(known) + math.log10(len(known))) if known else None


def upper_bound(hits: int, n: int) -> float:
    """One-sided 95 % Clopper-Pearson upper bound of a rate in [0, 1], after `hits` successes in n trials."""
    return 1.0 if hits >= n else float(stats.beta.ppf(0.95, hits + 1, n - hits))


def benign_rate(hits: int, n: int, benign_hits: int, benign_n: int) -> float:
    """T2: log10 P(Bin(n, p0) >= hits), p0 the one-sided Clopper-Pearson upper bound of the pooled benign hit rate.

    H0: the suspect hits each trigger independently, with at most the benign models' rate. The test fails where these
    are not like the suspect (other data, other architecture), or where hits on different triggers are dependent.
    """
    return binomial(hits, n, upper_bound(benign_hits, benign_n))


def paired_t(suspect, benign) -> float:
    """T3: log10 p of the one-sided paired t-test of the probabilities of the assigned labels.

    suspect (m,) softmax probabilities of the assigned labels; benign (m,) or (B, m), averaged over B models.

    H0: the mean over triggers of suspect - benign is not above 0 (differences independent, their mean nearly normal).
    The triggers, two or more, are the sample, the models are fixed: the test says whether these triggers distinguish
    this suspect from these benign models, not how often another independent model would look like a copy.
    """
    benign = np.atleast_2d(np.asarray(benign, float)).mean(axis=0)
    return float(subset_pvalues(suspect, benign, len(suspect), 1, np.random.default_rng(0), paired=True)[0])


def subset_pvalues(u, v, m: int, repeats: int, rng, *, paired: bool = False, alternative: str = "greater"):
    """log10 p (repeats,) of t-tests of u against v, (n,) each; a test uses m positions, drawn without replacement.

    Welch's test, or the paired t-test with `paired`. H1: mean(u) > mean(v), or with alternative "two-sided" that they
    differ. ValueError unless 2 <= m <= n. A standard deviation below the resolution of float32 counts as `RESOLVED`:
    scores that do not vary give p = 1 where the means are equal, otherwise a p near 0 or 1 according to the sign,
    never a NaN. Aggregate with `harmonic_mean`.
    """
    if not 2 <= m <= len(u) == len(v):
        raise ValueError(f"no test on {m} of {len(u)} and {len(v)} scores")
    picks = np.stack([rng.choice(len(u), m, replace=False) for _ in range(repeats)])
    u, v = np.asarray(u, float)[picks], np.asarray(v, float)[picks]
    gap = u.mean(axis=1) - v.mean(axis=1)
    spreads = np.stack([sample.std(axis=1, ddof=1) for sample in ([u - v] if paired else [u, v])])
    squares = np.maximum(spreads, RESOLVED) ** 2 / m
    t = gap / np.sqrt(squares.sum(axis=0))
    df = (m - 1) * squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0)  # Welch-Satterthwaite; paired: m - 1
    sides, t = (2, abs(t)) if alternative == "two-sided" else (1, t)
    p = np.maximum(sides * stats.t.sf(t, df), 5e-324)  # the least number: scipy's tail underflows to 0
    log10_p = np.minimum(np.log10(p), 0)
    equal = (spreads.max(axis=0) < RESOLVED) & (abs(gap) < RESOLVED)
    return np.where(equal, 0.0, log10_p)


def subset(suspect, benign) -> float:
    """`p_subset`: log10 of the harmonic mean of T3 over 100 random subsets of 10 triggers. Never for a decision.

    For comparison with the paper's Table 2, which does not say how its p-values were computed. The subsets overlap, so
    it is no valid p-value: under H0 it falls below 0.05 in 9 to 11 % of cases. Arguments as in `paired_t`.
    """
    benign, m = np.atleast_2d(np.asarray(benign, float)).mean(axis=0), min(10, len(suspect))
    return harmonic_mean(subset_pvalues(suspect, benign, m, 100, np.random.default_rng(0), paired=True))


def harmonic_mean(log10_p) -> float:
    """log10 of the harmonic mean of p-values, from log10 p (B,), as the paper aggregates seeds; no valid p-value."""
    log_p = np.asarray(log10_p, float) * LOG10
    return float(math.log(len(log_p)) - special.logsumexp(-log_p)) / LOG10


def rank(score: float, benign_scores) -> float:
    """T4: log10 of (1 + number of benign models that score at least as high) / (B + 1).

    H0: the suspect's score and the B benign scores are exchangeable. p cannot fall below 1 / (B + 1).
    """
    benign_scores = np.asarray(benign_scores)
    return math.log10((1 + int((benign_scores >= score).sum())) / (len(benign_scores) + 1))
