"""Which run each number of the paper's tables and figures comes from.

Everything here is of one seed, that of `runs`. A cell is (step, function of the step's JSON -> number or None). The
order of the cells is the order of a table's rows and of the runs. Rates are in per cent.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

import shlex
from pathlib import Path

from figures.published import ACC, P_SCORES, TRIG, P
from figures.runs import Profile, RunCommands, RunStep

# ---- numbers of a step's JSON: functions of its content ----

accuracy_percent = lambda result: 100 * result["test_accuracy"]
trigger_percent = lambda result: 100 * result["trigger_hits"] / result["trigger_size"]


def benign_trigger_percent(result):
    """Share of a source's triggers that its benign model answers as assigned; None for a report without one."""
    return next((trigger_percent(row) for row in result["rows"] if row["model"].startswith("benign")), None)


def rival_log10_p(i):
    """A function of the JSON of `RunCommands.verdict`: log10 p of the i-th of `MODELS`.

    `utils.verify di` writes the source apart from the suspects; for `eef` the source is one of the suspects.
    """
    return lambda result: [*filter(None, [result.get("source")]), *result["suspects"]][i]["log10_p"]


# ---- tables: {(row, column): cell}, as far as the profile of `runs` makes them ----

ACC_TRIG = {ACC: accuracy_percent, TRIG: trigger_percent}
# rows of Tables 2 and 3: name -> (-tt, {column: value}); DI and EEF, which have no triggers, are in `_rival_rows`
WATERMARKS = {
    "EWE": ("ewe", ACC_TRIG),
    "RS": ("rs", ACC_TRIG),
    "margin": ("margin", ACC_TRIG | {P: lambda result: result["log10_p"]["T1"],
                                     P_SCORES: lambda result: result["log10_p"].get("T1p")}),
}


def _row(row: str, step: RunStep, values=None) -> dict:
    """A row's cells, whose `values` {column: value} come from one step: by default accuracy and triggers."""
    return {(row, column): (step, value) for column, value in (values or ACC_TRIG).items()}


def mixup_source(runs: RunCommands, k: int) -> RunStep:
    """The source whose triggers are means of k images (appendix B.3)."""
    return runs.source(tag=f"mix{k}-", extra=f"-nm {k}")


def _other_images(runs, source, label, extra="") -> RunStep:
    """The soft extraction with the images of another data set; `label` is its name in `Profile.other`."""
    data = runs.profile.other[label]
    return runs.copy(source, extra=f"-dsrc {data} {extra}", tag=data)


def _table1(runs):
    source = runs.source("base")
    return _row("source", source) | _row("soft", runs.copy(source))


def _table2(runs):
    cells, other = {}, {name: data for name, data in runs.profile.other.items() if name == "CIFAR-100"}
    for label, dataset in {"CIFAR-10": runs.profile.dataset, **other}.items():
        for method, (kind, values) in WATERMARKS.items():
            for model, step in runs.models(runs.source(kind, dataset=dataset)).items():
                cells |= _row(f"{label} {method}, {model}", step, values)
        cells |= _rival_rows(runs, label, dataset)
    return cells


def _rival_rows(runs, label, dataset) -> dict:
    """The rows of DI and, on CIFAR-10, EEF, whose benign model begins from other weights than the victim."""
    plain, other = (of.source("none", dataset=dataset) for of in (runs, runs._replace(seed=runs.seed + 1000)))
    models = runs.models(plain)
    tested = {"DI": (models, runs.verdict("di", plain, list(models.values())[1:]))}
    if label == "CIFAR-10":
        models = runs.models(runs.source("none", "eef-", runs.profile.styled, dataset=dataset))
        tested["EEF"] = models, runs.verdict("eef", models["source"], list(models.values()), benign=(other,))
    cells = {}
    for method, (models, verdict) in tested.items():
        for i, (model, step) in enumerate(models.items()):
            row = f"{label} {method}, {model}"
            cells |= {(row, ACC): (step, accuracy_percent), (row, P): (verdict, rival_log10_p(i))}
    return cells


def _table3(runs):
    return {(method, TRIG): (runs.source(kind), benign_trigger_percent) for method, (kind, _) in WATERMARKS.items()}


def _table4(runs):
    source = runs.source()
    cells = _row("source", source)
    if "SVHN" in runs.profile.other:
        cells |= _row("soft, SVHN images", _other_images(runs, source, "SVHN"))
    return cells | _row("soft, VGG-11", runs.copy(source, tag="vgg11", model="vgg11"))


def _table5(runs):
    return {(model, "margin, pixels in [0, 1]"): (runs.analysis(step, "margin"), lambda result: result["mean"])
            for model, step in runs.models(runs.source()).items()}


def _table6(runs):
    """The attacks get -nm too, as the official ones do; it is only recorded."""
    cells = {}
    for k in (2, 5):
        source, mixed = mixup_source(runs, k), f"-nm {k}"
        models = {"source": source, "distill": runs.attack(source, "distill", mixed, "distill"),
                  "soft": runs.attack(source, "soft", mixed)}  # soft is the default of -at
        if "CIFAR-100" in runs.profile.other:
            models["soft, CIFAR-100 images"] = _other_images(runs, source, "CIFAR-100", mixed)
        for model, step in models.items():
            cells |= _row(f"k = {k}, {model}", step)
    return cells


def _table7(runs):
    source = runs.source()
    models = {"source": source, "reg": runs.copy(source, "reg"), "soft": runs.copy(source)}
    if runs.profile.other:
        models["soft, other images"] = _other_images(runs, source, "CIFAR-100")
    refused = lambda result: 100 * result["refused_at_5_percent"]
    values = {ACC: accuracy_percent, "energy of D": lambda result: result["energy_clean"],
              "energy of successes": lambda result: result["energy_success"],  # None where there are none
              "energy of failures": lambda result: result["energy_failed"],
              "triggers refused at 5 % refused clean images, %": refused}
    cells = {}
    for model, step in models.items():
        cells |= _row(model, runs.analysis(step, "energy"), values)
    return cells


def _table8(runs):
    return _row("source", runs.source()) | _row("margin extraction", runs.copy(runs.source(), "margin"))


def _table9(runs):
    tuned = runs.copy(runs.source(), "finetune", f"-ep {runs.profile.finetune}", edits=True)
    return _row("source", runs.source()) | _row("fine-tuned", tuned)


# ---- figures of lines and bars: {axis label: {(series, x): cell}}, an entry for each panel ----


def sweep_series(runs, sources) -> dict:
    """The cells of a panel that varies the source, `sources` {x: step}; copies are soft."""
    cells = {}
    for x, source in sources.items():
        cells["source, accuracy", x] = (source, accuracy_percent)
        cells |= _copy_series(x, runs.copy(source))
    return cells


def _copy_series(x, step, i=None) -> dict:
    """A copy's cells at x, of its figures or of the i-th of its rows."""
    of = lambda value: value if i is None else lambda result: value(result["rows"][i])
    return {("surrogate, accuracy", x): (step, of(accuracy_percent)),
            ("surrogate, triggers", x): (step, of(trigger_percent))}


def _figure1(runs):
    models = runs.models(runs.source())
    series = {"accuracy": accuracy_percent, "triggers": trigger_percent}  # of the source and of its copies
    return {"model": {(name, model): (step, value) for name, value in series.items() for model, step in models.items()}}


def _figure3(runs):
    clean = runs.source("none")
    labelled = lambda strategy: runs.source(tag=f"{strategy}-", needs=(clean,), extra=f"--label-strategy {strategy} "
                                            f"--label-model {shlex.quote(str(clean.folder))}")
    sources = {"highest": labelled("highest"), "random": runs.source(), "lowest": labelled("lowest")}
    return {"labels of the triggers": sweep_series(runs, sources)}


def _figure4(runs):
    cells = {}
    for a in runs.profile.alphas:
        cells |= _copy_series(a, runs.attack(runs.source(), f"a{a}", f"-a {a}", script="distill"))
    return {"α, weight of the source's answers in distillation": cells}


def _figure6(runs):
    p = runs.profile
    steps = lambda k: runs.source() if k == 5 else runs.source(tag=f"K{k}-", extra=f"--steps {k}")
    weighted = lambda v: runs.source(tag=f"v{v}-", extra=f"--reduction sum -v {v}")
    return {"(a) ascent steps K, eps = K/255": sweep_series(runs, {k: steps(k) for k in p.K}),
            "(b) number m of triggers": sweep_series(runs, {m: runs.source(m=m) for m in p.sizes}),
            "(c) λ of Eq. 4": sweep_series(runs, {v: weighted(v) for v in p.weights})}


def _figure8(runs):
    source = runs.source()
    pruned = runs.attack(source, "prune", "-at prune --on extraction_soft", edits=True, needs=(runs.copy(source),))
    cells = {}
    for i in range(10):  # the rows of the pruning run are its ratios 0, 0.1, ..., 0.9
        cells |= _copy_series(round(0.1 * i, 1), pruned, i)
    return {"pruned share of each layer's channels": cells}


TABLE_CELLS = {"table1": _table1, "table2": _table2, "table3": _table3, "table4": _table4, "table5": _table5,
               "table6": _table6, "table7": _table7, "table8": _table8, "table9": _table9}
PANELS = {"figure1": _figure1, "figure3": _figure3, "figure4": _figure4, "figure6": _figure6, "figure8": _figure8}
TABLES = tuple(TABLE_CELLS)
FIGURES = tuple(dict.fromkeys([*(f"figure{i}" for i in range(1, 9)), *PANELS]))


# ---- the runs that a table or figure needs ----


def shown_steps(name: str, runs: RunCommands) -> list[RunStep]:
    """The steps of one seed whose results a table or figure shows."""
    if name == "figure2":
        return []  # its runs take seconds and are its own, see figures.toy
    if name == "figure5":
        return [mixup_source(runs, 2)]
    if name == "figure7":
        return [runs.analysis(step, "tsne") for step in runs.models(runs.source()).values()]
    panels = {name: TABLE_CELLS[name](runs)} if name in TABLES else PANELS[name](runs)
    return [step for cells in panels.values() for step, _ in cells.values()]


def steps_of_target(name: str, profile: Profile, folder: Path) -> list[RunStep]:
    """All steps of a table or figure for all seeds of the profile, each after the steps it needs."""
    steps = {}  # its keys, in order

    def visit(step):
        for before in step.needs:
            visit(before)
        steps.setdefault(step)

    for seed in profile.seeds:
        for step in shown_steps(name, RunCommands(profile, folder, seed)):
            visit(step)
    return list(steps)
