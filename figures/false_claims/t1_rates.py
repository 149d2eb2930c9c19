"""How often T1 claims benign models falsely, and how often and how fast it claims copies; from recorded answers.

`answers` is what `t1_models` collected and errors.json holds.
"""

import numpy as np
from scipy import stats

from utils.ownership import pvalues

ALPHAS = (0.05, 0.01, 0.001)
RELABELLINGS, ORDERS = 200, 200  # fresh draws of the labels for each benign model; random orders of the queries


def interval(k: int, n: int) -> tuple:
    """Two-sided 95 % Clopper-Pearson interval of a rate, after k of n."""
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    return float(low), float(stats.beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0


def false_claims(answers) -> dict:
    """T1 of the benign models: {"rows", "log10_p"}, claims at each of `ALPHAS` and the p-values.

    "drawn" uses the labels as they were drawn, "redrawn" fresh draws for each model, "redrawn_weak" those of the models
    that were trained for one epoch.
    """
    assigned, true = np.array(answers["assigned"]), np.array(answers["true"])
    rng, known_tails, p = np.random.default_rng(0), {}, {"drawn": [], "redrawn": [], "redrawn_weak": []}
    for row in answers["benign"]:
        given = np.array(row["answers"])
        p["drawn"].append(_t1_log10_p(given, assigned, true, known_tails))
        for _ in range(RELABELLINGS):
            labels = (true + rng.integers(1, 10, len(true))) % 10  # uniform over the wrong classes
            p["redrawn"].append(_t1_log10_p(given, labels, true, known_tails))
            if row["epochs"] == 1:
                p["redrawn_weak"].append(p["redrawn"][-1])
    rows = []
    for name, values in p.items():
        for alpha in ALPHAS:
            k = int((np.array(values) <= np.log10(alpha) + 1e-12).sum())
            n = len(values)
            rows.append({"labels": name, "alpha": alpha, "claims": k, "of": n, "interval": interval(k, n)})
    return {"rows": rows, "log10_p": p}


def power(answers, alpha: float = 1e-3) -> dict:
    """How often T1 claims source and copies: {"alpha", "share", "claimed_with_all"}, by kind of model.

    "share" is the share of random orders in which a model is claimed after n = 1, ..., m queries, averaged over models.
    "claimed_with_all" is [number of models claimed with all queries, number of models].
    """
    assigned, true = np.array(answers["assigned"]), np.array(answers["true"])
    rng, known_tails, shares = np.random.default_rng(1), {}, {}
    rows = [("source", answers["source"])] + [(row["attack"], row) for row in answers["stolen"]]
    for kind, row in rows:
        given = np.array(row["answers"])
        claimed = np.zeros(len(true))
        for _ in range(ORDERS):
            order = rng.permutation(len(true))
            for n in range(1, len(true) + 1):
                part = order[:n]
                log10_p = _t1_log10_p(given[part], assigned[part], true[part], known_tails)
                claimed[n - 1] += log10_p <= np.log10(alpha)
        shares.setdefault(kind, []).append((claimed / ORDERS).tolist())
    return {"alpha": alpha, "share": {kind: np.mean(s, axis=0).tolist() for kind, s in shares.items()},
            "claimed_with_all": {kind: [sum(one[-1] for one in s), len(s)] for kind, s in shares.items()}}


def _t1_log10_p(given, assigned, true, known_tails: dict) -> float:
    """log10 p of T1 for ten classes; `known_tails` caches {(hits, wrong answers): log10 p}."""
    outside = given != true
    pair = int((outside & (given == assigned)).sum()), int(outside.sum())
    if pair not in known_tails:
        known_tails[pair] = pvalues.binomial(*pair, 1 / 9)
    return known_tails[pair]
