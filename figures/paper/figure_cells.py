"""The cells of the paper's figures of lines and bars (1, 3, 4, 6 and 8): which run each point comes from.

Cells are those of `table_cells`; a point's key is (series, x). Figures 2, 5 and 7 are not made of cells.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

import shlex

from figures.paper.commands import RunCommands
from figures.paper.table_cells import accuracy_percent, table_cells, trigger_percent
from utils.published.numbers import ACC, MODELS, TRIG


def figure_panels(name: str, runs: RunCommands) -> dict:
    """{axis label: {(series, x): cell}}, an entry for each panel of the figure."""
    return PANELS[name](runs)


def sweep_series(variants, steal):
    """The cells of a panel that varies the source: `variants` {x: function of a seed -> source}, `steal` attacks it."""
    cells = {}
    for x, source in variants.items():
        cells["source, accuracy", x] = (source, accuracy_percent)
        cells |= _surrogate_series(x, lambda seed, source=source: steal(source(seed)))
    return cells


def _surrogate_series(x, step) -> dict:
    return {("surrogate, accuracy", x): (step, accuracy_percent), ("surrogate, triggers", x): (step, trigger_percent)}


def _figure1(runs):
    table2 = table_cells("table2", runs)
    series = (("surrogate, accuracy", ACC), ("surrogate, triggers", TRIG))
    return {"model": {(name, m): table2[f"CIFAR-10 margin, {m}", column] for name, column in series for m in MODELS}}


def _figure3(runs):
    def labelled(strategy):
        def source(seed):
            if strategy == "random":
                return runs.source(seed)
            clean = runs.source(seed, "none")
            extra = f"--label-strategy {strategy} --label-model {shlex.quote(str(clean.folder))}"
            return runs.source(seed, tag=f"{strategy}-", extra=extra, needs=(clean,))
        return source

    variants = {strategy: labelled(strategy) for strategy in ("highest", "random", "lowest")}
    return {"labels of the triggers": sweep_series(variants, _soft(runs))}


def _figure4(runs):
    cells = {}
    for a in runs.profile.alphas:
        step = lambda seed, a=a: runs.attack(runs.source(seed), f"a{a}", f"-a {a}", script="distill")
        cells |= _surrogate_series(a, step)
    return {"α, weight of the source's answers in distillation": cells}


def _figure6(runs):
    p, soft = runs.profile, _soft(runs)
    steps = lambda k: runs.source if k == 5 else lambda seed: runs.source(seed, tag=f"K{k}-", extra=f"--steps {k}")
    sized = lambda m: runs.source if m == p.m else lambda seed: runs.source(seed, m=m)
    weighted = lambda v: lambda seed: runs.source(seed, tag=f"v{v}-", extra=f"--reduction sum -v {v}")
    return {"(a) ascent steps K, eps = K/255": sweep_series({k: steps(k) for k in p.K}, soft),
            "(b) number m of triggers": sweep_series({m: sized(m) for m in p.sizes}, soft),
            "(c) λ of Eq. 4": sweep_series({v: weighted(v) for v in p.weights}, soft)}


def _figure8(runs):
    soft = _soft(runs)
    pruned = lambda seed: runs.attack(runs.source(seed), "prune", "-at prune --on extraction_soft", edits=True,
                                      needs=(soft(runs.source(seed)),))
    cells = {}
    for i in range(10):  # the rows of the pruning run are its ratios 0, 0.1, ..., 0.9
        ratio = round(0.1 * i, 1)
        cells["surrogate, accuracy", ratio] = (pruned, lambda result, i=i: accuracy_percent(result["rows"][i]))
        cells["surrogate, triggers", ratio] = (pruned, lambda result, i=i: trigger_percent(result["rows"][i]))
    return {"pruned share of each layer's channels": cells}


def _soft(runs):
    """A function of a source: the step of its soft extraction."""
    return lambda source: runs.attack(source, "soft", "-at soft")


PANELS = {"figure1": _figure1, "figure3": _figure3, "figure4": _figure4, "figure6": _figure6, "figure8": _figure8}
