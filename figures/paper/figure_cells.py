"""TODO (figures.plan)"""

import shlex

from figures.paper.commands import RunCommands
from figures.paper.numbers import ACC, MODELS, TRIG
from figures.paper.table_cells import accuracy_percent, table_cells, trigger_percent


def sweep_series(variants, steal):
    """Series of a sweep: `variants` {x: function of a seed -> source}."""
    made = {}
    for x, source in variants.items():
        made["source, accuracy", x] = (source, accuracy_percent)
        made["surrogate, accuracy", x] = (lambda seed, s=source: steal(s(seed)), accuracy_percent)
        made["surrogate, triggers", x] = (lambda seed, s=source: steal(s(seed)), trigger_percent)
    return made


def figure_panels(name: str, runs: RunCommands) -> dict:
    """{axis label: {(series, x): (function of a seed -> step, value)}} of a figure of lines or bars."""
    p = runs.profile
    soft = lambda source: runs.attack(source, "soft", "-at soft")
    if name == "figure1":
        t2 = table_cells("table2", runs)
        return {"model": {(s, m): t2[f"CIFAR-10 margin, {m}", c] for s, c in (
            ("surrogate, accuracy", ACC), ("surrogate, triggers", TRIG)) for m in MODELS}}
    if name == "figure3":
        def labelled(strategy):
            def source(seed):
                if strategy == "random":
                    return runs.source(seed)
                clean = runs.source(seed, "none").folder
                extra = f"--label-strategy {strategy} --label-model {shlex.quote(str(clean))}"
                return runs.source(seed, tag=f"{strategy}-", extra=extra)
            return source
        return {"labels of the triggers": sweep_series({s: labelled(s) for s in ("highest", "random", "lowest")}, soft)}
    if name == "figure4":
        made = {}
        for a in p.alphas:
            step = lambda seed, a=a: runs.attack(runs.source(seed), f"a{a}", f"-a {a}", script="distill")
            made["surrogate, accuracy", a] = (step, accuracy_percent)
            made["surrogate, triggers", a] = (step, trigger_percent)
        return {"α, weight of the source's answers in distillation": made}
    if name == "figure6":
        k5 = lambda k: runs.source if k == 5 else lambda seed: runs.source(seed, tag=f"K{k}-", extra=f"--steps {k}")
        sized = lambda m: runs.source if m == p.m else lambda seed: runs.source(seed, m=m)
        weighted = lambda v: lambda seed: runs.source(seed, tag=f"v{v}-", extra=f"--reduction sum -v {v}")
        return {"(a) ascent steps K, eps = K/255": sweep_series({k: k5(k) for k in p.K}, soft),
                "(b) number m of triggers": sweep_series({m: sized(m) for m in p.sizes}, soft),
                "(c) λ of Eq. 4": sweep_series({v: weighted(v) for v in p.weights}, soft)}
    made, ratios = {}, [round(0.1 * i, 1) for i in range(10)]
    cut = lambda seed: runs.attack(runs.source(seed), "prune", "-at prune --on extraction_soft",
                                   edits=True, needs=(soft(runs.source(seed)),))
    for i, ratio in enumerate(ratios):
        made["surrogate, accuracy", ratio] = (cut, lambda r, i=i: accuracy_percent(r["rows"][i]))
        made["surrogate, triggers", ratio] = (cut, lambda r, i=i: trigger_percent(r["rows"][i]))
    return {"pruned share of each layer's channels": made}
