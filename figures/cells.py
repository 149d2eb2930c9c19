"""Which run each number of the paper's tables and figures comes from.

A cell is (function of a seed -> step, function of the step's JSON -> number or None). The order of the cells is the
order of a table's rows and of the runs. Rates are in per cent.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

import shlex

from figures.runs import RunCommands, RunStep
from utils.published import ACC, MODELS, P_SCORES, TRIG, P

# ---- numbers of a step's JSON: functions of its content ----

accuracy_percent = lambda result: 100 * result["test_accuracy"]
trigger_percent = lambda result: 100 * result["trigger_hits"] / result["trigger_size"]
t1_log10_p = lambda result: result["log10_p"]["T1"]
t1p_log10_p = lambda result: result["log10_p"].get("T1p")  # None in a report from before that test


def benign_trigger_percent(result):
    """Share of a source's triggers that its benign model answers as assigned; None in a report made before it."""
    row = next((row for row in result["rows"] if row["model"].startswith("benign")), None)
    return None if row is None else trigger_percent(row)


def of_clean_statistics(value):
    """A function of a source's JSON: `value` of its model with clean BatchNorm statistics, None where it has none."""
    return lambda result: None if result["clean"] is None else value(result["clean"])


def value_of(name, factor=1):
    """A function of a JSON: `factor` times the value under `name`, None where that is null."""
    return lambda result: None if result[name] is None else factor * result[name]


def rival_log10_p(i):
    """A function of the JSON of `RunCommands.verdict`: log10 p of the i-th of `MODELS`.

    `utils.verify di` writes the source apart from the suspects; for `eef` the source is one of the suspects.
    """
    return lambda result: [*filter(None, [result.get("source")]), *result["suspects"]][i]["log10_p"]


# ---- steps that several cells share; `source` is a function of a seed ----


def copies_of(runs, source, attack="soft", extra="", **more):
    """The copies of a source by extraction with -at `attack`, for `RunCommands.attack`."""
    tag = more.pop("tag", attack)
    return lambda seed: runs.attack(source(seed), tag, f"-at {attack} {extra}", **more)


def other_images(runs, source, label, extra=""):
    """The soft extractions with the images of another data set; `label` is its name in `Profile.other`."""
    data = runs.profile.other[label]
    return copies_of(runs, source, extra=f"-dsrc {data} {extra}", tag=data)


def mixup_source(runs, k):
    """Sources whose triggers are means of k images (appendix B.3)."""
    return lambda seed: runs.source(seed, tag=f"mix{k}-", extra=f"-nm {k}")


def named(runs, model, of=None):
    """The source or extraction that is called `model` in Table 2; `of` gives the source (default: margin's)."""
    return lambda seed: runs.named((of or runs.source)(seed))[model]


def rival_verdict(runs, method, seed, dataset) -> tuple[dict, RunStep]:
    """({model: step} for `MODELS`, the step that tests them) of DI or EEF; EEF's benign model is DI's source."""
    plain = runs.source(seed, "none", dataset=dataset)
    if method == "DI":
        models = runs.named(plain)
        return models, runs.verdict("di", plain, list(models.values())[1:])
    models = runs.named(runs.source(seed, "none", "eef-", runs.profile.styled, dataset=dataset))
    return models, runs.verdict("eef", models["source"], list(models.values()), benign=(plain,))


# ---- tables: {(row, column): cell}, as far as the profile of `runs` makes them ----

ACC_TRIG = {ACC: accuracy_percent, TRIG: trigger_percent}
# rows of Tables 2 and 3: name -> (-tt, {column: value}); DI and EEF, which have no triggers, are in `_rival_rows`
WATERMARKS = {
    "EWE": ("ewe", ACC_TRIG),
    "RS": ("rs", ACC_TRIG),
    "margin": ("margin", ACC_TRIG | {P: t1_log10_p, P_SCORES: t1p_log10_p}),
}


def _row(row, step, values=None) -> dict:
    """A row's cells, whose `values` {column: value} come from one step: by default accuracy and triggers."""
    return {(row, column): (step, value) for column, value in (values or ACC_TRIG).items()}


def _table1(runs):
    source = lambda seed: runs.source(seed, "base")
    return _row("source", source) | _row("soft", copies_of(runs, source))


def _table2(runs):
    cells, datasets = {}, {"CIFAR-10": runs.profile.dataset}
    if runs.profile.whole:
        datasets["CIFAR-100"] = "cifar100"
    for label, dataset in datasets.items():
        for method, (kind, values) in WATERMARKS.items():
            source = lambda seed, kind=kind, dataset=dataset: runs.source(seed, kind, dataset=dataset)
            for model in MODELS:
                cells |= _row(f"{label} {method}, {model}", named(runs, model, source), values)
        if runs.profile.whole and label == "CIFAR-10":
            cells |= _control_rows(runs, label)
        for method in ("DI", "EEF") if label == "CIFAR-10" else ("DI",):
            cells |= _rival_rows(runs, method, label, dataset)
    return cells


def _control_rows(runs, label) -> dict:
    """Rows that the paper's Table 2 has not: ERM and the margin source with clean statistics, a soft copy of each."""
    erm = lambda seed: runs.source(seed, "base")
    values = WATERMARKS["margin"][1]
    clean = {column: of_clean_statistics(value) for column, value in values.items()}
    return {
        **_row(f"{label} ERM, source", erm, values),
        **_row(f"{label} ERM, soft", copies_of(runs, erm), values),
        **_row(f"{label} margin with clean statistics, source", runs.source, clean),
        **_row(f"{label} margin with clean statistics, soft", lambda seed: runs.clean_soft(runs.source(seed)), values),
    }


def _rival_rows(runs, method, label, dataset) -> dict:
    cells, verdict = {}, lambda seed: rival_verdict(runs, method, seed, dataset)
    for i, model in enumerate(MODELS):
        row = f"{label} {method}, {model}"
        cells[row, ACC] = (lambda seed, model=model: verdict(seed)[0][model], accuracy_percent)
        cells[row, P] = (lambda seed: verdict(seed)[1], rival_log10_p(i))
    return cells


def _table3(runs):
    return {(method, TRIG): (lambda seed, kind=kind: runs.source(seed, kind), benign_trigger_percent)
            for method, (kind, values) in WATERMARKS.items() if TRIG in values}


def _table4(runs):
    cells = _row("source", runs.source)
    if "SVHN" in runs.profile.other:
        cells |= _row("soft, SVHN images", other_images(runs, runs.source, "SVHN"))
    return cells | _row("soft, VGG-11", copies_of(runs, runs.source, tag="vgg11", model="vgg11"))


def _table5(runs):
    margin = lambda model: lambda seed: runs.analysis(named(runs, model)(seed), "margin")
    return {(model, "margin, pixels in [0, 1]"): (margin(model), value_of("mean")) for model in MODELS}


def _table6(runs):
    """The attacks get -nm too, because it is a part of the trigger set's name."""
    cells = {}
    for k in (2, 5):
        source, mixed = mixup_source(runs, k), f"-nm {k}"
        distill = lambda seed, source=source, mixed=mixed: runs.attack(source(seed), "distill", mixed, "distill")
        soft = lambda seed, source=source, mixed=mixed: runs.attack(source(seed), "soft", mixed)  # the default of -at
        for model, step in (("source", source), ("distill", distill), ("soft", soft)):
            cells |= _row(f"k = {k}, {model}", step)
        if "CIFAR-100" in runs.profile.other:
            cells |= _row(f"k = {k}, soft, CIFAR-100 images", other_images(runs, source, "CIFAR-100", mixed))
    return cells


def _table7(runs):
    models = {m: named(runs, m) for m in ("source", "reg", "soft")}
    if runs.profile.other:
        models["soft, other images"] = other_images(runs, runs.source, next(iter(runs.profile.other)))
    values = {ACC: accuracy_percent, "energy of D": value_of("energy_clean"),
              "energy of successes": value_of("energy_success"), "energy of failures": value_of("energy_failed"),
              "triggers refused at 5 % refused clean images, %": value_of("refused_at_5_percent", 100)}
    cells = {}
    for model, step in models.items():
        cells |= _row(model, lambda seed, step=step: runs.analysis(step(seed), "energy"), values)
    return cells


def _table8(runs):
    return _row("source", runs.source) | _row("margin extraction", copies_of(runs, runs.source, "margin"))


def _table9(runs):
    tune = copies_of(runs, runs.source, "finetune", f"-ep {runs.profile.finetune}", edits=True)
    return _row("source", runs.source) | _row("fine-tuned", tune)


# ---- figures of lines and bars: {axis label: {(series, x): cell}}, an entry for each panel ----


def sweep_series(runs, variants):
    """The cells of a panel that varies the source: `variants` {x: function of a seed -> source}; copies are soft."""
    cells = {}
    for x, source in variants.items():
        cells["source, accuracy", x] = (source, accuracy_percent)
        cells |= _copy_series(x, copies_of(runs, source))
    return cells


def _copy_series(x, step, i=None) -> dict:
    """A copy's cells at x, of its figures or of the i-th of its rows."""
    of = lambda value: value if i is None else lambda result: value(result["rows"][i])
    return {("surrogate, accuracy", x): (step, of(accuracy_percent)),
            ("surrogate, triggers", x): (step, of(trigger_percent))}


def _figure1(runs):
    table2 = _table2(runs)
    series = (("accuracy", ACC), ("triggers", TRIG))  # of the source and of its copies
    return {"model": {(name, m): table2[f"CIFAR-10 margin, {m}", column] for name, column in series for m in MODELS}}


def _figure3(runs):
    def labelled(strategy):
        def source(seed):
            clean = runs.source(seed, "none")
            extra = f"--label-strategy {strategy} --label-model {shlex.quote(str(clean.folder))}"
            return runs.source(seed, tag=f"{strategy}-", extra=extra, needs=(clean,))
        return source

    variants = {"highest": labelled("highest"), "random": runs.source, "lowest": labelled("lowest")}
    return {"labels of the triggers": sweep_series(runs, variants)}


def _figure4(runs):
    cells = {}
    for a in runs.profile.alphas:
        step = lambda seed, a=a: runs.attack(runs.source(seed), f"a{a}", f"-a {a}", script="distill")
        cells |= _copy_series(a, step)
    return {"α, weight of the source's answers in distillation": cells}


def _figure6(runs):
    p = runs.profile
    steps = lambda k: runs.source if k == 5 else lambda seed: runs.source(seed, tag=f"K{k}-", extra=f"--steps {k}")
    sized = lambda m: runs.source if m == p.m else lambda seed: runs.source(seed, m=m)
    weighted = lambda v: lambda seed: runs.source(seed, tag=f"v{v}-", extra=f"--reduction sum -v {v}")
    return {"(a) ascent steps K, eps = K/255": sweep_series(runs, {k: steps(k) for k in p.K}),
            "(b) number m of triggers": sweep_series(runs, {m: sized(m) for m in p.sizes}),
            "(c) λ of Eq. 4": sweep_series(runs, {v: weighted(v) for v in p.weights})}


def _figure8(runs):
    soft = copies_of(runs, runs.source)
    pruned = lambda seed: runs.attack(runs.source(seed), "prune", "-at prune --on extraction_soft", edits=True,
                                      needs=(soft(seed),))
    cells = {}
    for i in range(10):  # the rows of the pruning run are its ratios 0, 0.1, ..., 0.9
        cells |= _copy_series(round(0.1 * i, 1), pruned, i)
    return {"pruned share of each layer's channels": cells}


TABLE_CELLS = {"table1": _table1, "table2": _table2, "table3": _table3, "table4": _table4, "table5": _table5,
               "table6": _table6, "table7": _table7, "table8": _table8, "table9": _table9}
PANELS = {"figure1": _figure1, "figure3": _figure3, "figure4": _figure4, "figure6": _figure6, "figure8": _figure8}
TABLES, FIGURES = tuple(TABLE_CELLS), tuple(f"figure{i}" for i in range(1, 9))


# ---- the runs that a table or figure needs ----


def steps_of_target(name: str, runs: RunCommands) -> list[RunStep]:
    """All steps of a table or figure for all seeds of the profile, each after the steps it needs."""
    steps = {}  # its keys, in order

    def visit(step):
        for before in step.needs:
            visit(before)
        steps.setdefault(step)

    for seed in runs.profile.seeds:
        for step in _shown_steps(name, runs):
            visit(step(seed))
    return list(steps)


def _shown_steps(name, runs) -> list:
    """Functions of a seed that give the steps whose results are shown."""
    if name == "figure2":
        return []
    if name == "figure5":
        return [mixup_source(runs, 2)]
    if name == "figure7":
        return [lambda seed, m=m: runs.analysis(named(runs, m)(seed), "tsne") for m in MODELS]
    panels = {name: TABLE_CELLS[name](runs)} if name in TABLES else PANELS[name](runs)
    return [step for cells in panels.values() for step, _ in cells.values()]
