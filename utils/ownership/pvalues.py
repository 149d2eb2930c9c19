"""TODO (utils.pvalues)"""

import math

import numpy as np
from scipy import special, stats

LOG10 = math.log(10)
RESOLVED = 1e-7  # float32 probabilities and scores are known no better


def binomial(k: int, n: int, p: float) -> float:
    """log10 P(Bin(n, p) >= k), summed in logs, so that it neither underflows nor prints 0. 0 <= k <= n, 0 < p < 1."""
    if k <= 0:
        return 0.0
    if k > n:
        return -math.inf
    tail = special.logsumexp(stats.binom.logpmf(np.arange(k, n + 1), n, p))
    return min(0.0, float(tail) / LOG10)


def label_randomisation(predicted, assigned, true, classes: int, conservative: bool = False) -> float:
    """T1, exact: log10 p of as many hits by a model that knows nothing of the assigned labels.

    predicted (m,) the suspect's answers; assigned (m,); true (m, k) the sources' labels; `classes` of them exist.

    H0: the suspect is independent of the draw of the assigned labels. These were drawn uniformly from the classes
    that are no true label of the trigger, so whenever the suspect answers outside the true labels it hits with
    probability 1 / (classes - k), whatever the suspect is. With W such answers and h hits,
    p = P(Bin(W, 1 / (classes - k)) >= h); `conservative` takes W = m. No benign models are needed.

    It fails where the labels were not drawn uniformly (highest, lowest, one fixed label), or where nothing shows
    that they were fixed before the suspect existed (labels read off a suspect always hit).
    """
    predicted, assigned, true = np.asarray(predicted), np.asarray(assigned), np.asarray(true)
    outside = (predicted[:, None] != true).all(axis=1)
    hits = int((outside & (predicted == assigned)).sum())
    excluded = max((len(set(row)) for row in true.tolist()), default=1)  # the largest chance bounds the others
    return binomial(hits, len(predicted) if conservative else int(outside.sum()), 1 / (classes - excluded))


def upper_bound(hits: int, n: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson upper bound of a rate of which `hits` of n were seen."""
    return 1.0 if hits >= n else float(stats.beta.ppf(confidence, hits + 1, n - hits))


def benign_rate(hits: int, n: int, benign_hits: int, benign_n: int, confidence: float = 0.95) -> float:
    """T2: log10 P(Bin(n, p0) >= hits), p0 the one-sided Clopper-Pearson upper bound of the pooled benign hit rate.

    H0: the suspect hits each trigger independently with at most the benign models' rate. It fails where the bank of
    benign models is not like the suspect (other data, other architecture), or where triggers hit together.
    """
    if benign_hits == benign_n:
        return 0.0
    return binomial(hits, n, upper_bound(benign_hits, benign_n, confidence))


def student_t(t: float, df: int) -> float:
    """log10 P(T_df >= t); where scipy's tail nears underflow, half the incomplete beta function by its series."""
    tail = float(stats.t.sf(t, df))
    if tail > 1e-100:
        return math.log10(tail)
    x = 1 / (1 + t * t / df)
    log_series = math.log(float(special.hyp2f1(df / 2, 0.5, df / 2 + 1, x)))
    log_beta = -df / 2 * math.log1p(t * t / df) - math.log(df / 2) - float(special.betaln(df / 2, 0.5))
    return (log_beta + log_series - math.log(2)) / LOG10


def paired_t(suspect, benign) -> float:
    """T3: log10 p of the one-sided paired t-test of the probabilities of the assigned labels.

    suspect (m,) softmax probabilities of the assigned labels; benign (m,) or (B, m), averaged over B models.

    H0: over triggers, the mean of suspect - benign is not above 0 (differences independent and near normal in
    the mean). The triggers are the sample, the models are fixed: it says that these triggers tell this suspect
    from these benign models, not how often another independent model would look so. It fails with few or
    dependent triggers, and with a benign bank of one it cannot see how benign models vary.
    """
    difference = np.asarray(suspect, float) - np.atleast_2d(np.asarray(benign, float)).mean(axis=0)
    n, mean = len(difference), float(difference.mean())
    if n < 2 or mean == 0:
        return 0.0 if n < 2 else math.log10(0.5)
    spread = max(float(difference.std(ddof=1)), RESOLVED)
    return student_t(mean / spread * math.sqrt(n), n - 1)


def subset(suspect, benign, m: int = 10, repeats: int = 100, seed: int = 0) -> float:
    """`p_subset`: harmonic mean of T3 over `repeats` random subsets of m triggers. Never for a decision.

    The kind of figure that may stand beside Table 2, in the manner of dataset inference. Repeated overlapping
    subsets make it no valid p-value: under H0 it falls below 0.05 in about 7 % of cases.
    """
    suspect = np.asarray(suspect, float)
    benign = np.atleast_2d(np.asarray(benign, float)).mean(axis=0)
    rng, m = np.random.default_rng(seed), min(m, len(suspect))
    picks = (rng.choice(len(suspect), m, replace=False) for _ in range(repeats))
    return harmonic_mean([paired_t(suspect[pick], benign[pick]) for pick in picks])


def subset_pvalues(u, v, m: int, repeats: int, rng, *, paired: bool = False, alternative: str = "greater"):
    """log10 p (repeats,) of t-tests of u against v (n,), each on m positions of both, drawn without replacement.

    Welch's test, or the paired one; H1: mean(u) > mean(v), or with "two-sided" that they differ. `rng` is a numpy
    Generator, 2 <= m <= n. A spread that float32 cannot resolve counts as `RESOLVED`: scores that do not vary give
    p = 1 where the means are equal, else a p near 0 or 1 by sign, never a NaN. Aggregate with `harmonic_mean`.
    """
    if not 2 <= m <= len(u) == len(v) or alternative not in ("greater", "two-sided"):
        raise ValueError(f"no {alternative} test on {m} of {len(u)} and {len(v)} scores")
    picks = np.stack([rng.choice(len(u), m, replace=False) for _ in range(repeats)])
    u, v = np.asarray(u, float)[picks], np.asarray(v, float)[picks]
    samples = [u - v] if paired else [u, v]
    gap = u.mean(axis=1) - v.mean(axis=1)
    spreads = np.stack([sample.std(axis=1, ddof=1) for sample in samples])
    squares = np.maximum(spreads, RESOLVED) ** 2 / m
    t = gap / np.sqrt(squares.sum(axis=0))
    df = (m - 1) * squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0)  # Welch-Satterthwaite; m - 1 of one sample
    if alternative == "greater":
        log10_p = [student_t(*pair) for pair in zip(t, df)]
    else:
        log10_p = [min(0.0, math.log10(2) + student_t(*pair)) for pair in zip(abs(t), df)]
    same = (spreads.max(axis=0) < RESOLVED) & (abs(gap) < RESOLVED)
    return np.where(same, 0.0, log10_p)


def harmonic_mean(log10_p) -> float:
    """log10 of the harmonic mean of p-values given as log10 p (the paper's way over seeds), in logs.

    Not itself a valid p-value, and it hides a failed seed: for a decision take the largest.
    """
    log_p = np.asarray(log10_p, float) * LOG10
    return float(math.log(len(log_p)) - special.logsumexp(-log_p)) / LOG10


def rank(score: float, benign_scores) -> float:
    """T4: log10 of (1 + number of benign models that score at least as high) / (B + 1).

    H0: the suspect's score and the B benign scores are exchangeable. With B models it cannot fall below 1 / (B + 1).
    """
    benign_scores = np.asarray(benign_scores)
    return math.log10((1 + int((benign_scores >= score).sum())) / (len(benign_scores) + 1))
