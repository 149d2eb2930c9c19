"""The cells of the paper's tables: which run each number comes from.

A cell is (function of a seed -> step, function of the step's JSON -> number or None). The order of the cells is the
order of a table's rows and of the runs. Rates are in per cent.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

from figures.paper.commands import RunCommands, RunStep
from utils.published.numbers import ACC, MODELS, P_SCORES, TRIG, P


def table_cells(name: str, runs: RunCommands) -> dict:
    """{(row, column): cell} of a table of `TABLES`, as far as the profile of `runs` makes it."""
    return TABLE_CELLS[name](runs)


# ---- numbers of a step's JSON ----


def accuracy_percent(result):
    """Test accuracy."""
    return 100 * result["test_accuracy"]


def trigger_percent(result):
    """Share of the triggers that are answered as assigned."""
    return 100 * result["trigger_hits"] / result["trigger_size"]


def t1_log10_p(result):
    """log10 p of T1."""
    return result["log10_p"]["T1"]


def t1p_log10_p(result):
    """log10 p of T1p; None in a report from before that test."""
    return result["log10_p"].get("T1p")


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


# ---- tables ----

# rows of Tables 2 and 3: name -> (-tt, {column: value}); DI and EEF, which have no triggers, are in `_rival_cells`
WATERMARKS = {
    "EWE": ("ewe", {ACC: accuracy_percent, TRIG: trigger_percent}),
    "RS": ("rs", {ACC: accuracy_percent, TRIG: trigger_percent}),
    "margin": ("margin", {ACC: accuracy_percent, TRIG: trigger_percent, P: t1_log10_p, P_SCORES: t1p_log10_p}),
}


def _table1(runs):
    source = lambda seed: runs.source(seed, "base")
    return _both("source", source) | _both("soft", lambda seed: runs.attack(source(seed), "soft", "-at soft"))


def _table2(runs):
    cells, datasets = {}, {"CIFAR-10": runs.profile.dataset}
    if runs.profile.wide:
        datasets["CIFAR-100"] = "cifar100"
    for label, dataset in datasets.items():
        for method in WATERMARKS:
            cells |= _watermark_cells(runs, method, label, dataset)
        if runs.profile.controls and label == "CIFAR-10":
            cells |= _control_cells(runs, label)
        for method in ("DI", "EEF") if label == "CIFAR-10" else ("DI",):
            cells |= _rival_cells(runs, method, label, dataset)
    return cells


def _watermark_cells(runs, method, label, dataset) -> dict:
    kind, values = WATERMARKS[method]
    cells = {}
    for model in MODELS:
        step = lambda seed, model=model: runs.named(runs.source(seed, kind, dataset=dataset))[model]
        cells |= {(f"{label} {method}, {model}", column): (step, value) for column, value in values.items()}
    return cells


def _control_cells(runs, label) -> dict:
    """Rows that the paper's Table 2 has not: ERM and the margin source with clean statistics, a soft copy of each."""
    erm = lambda seed: runs.source(seed, "base")
    cells = {}
    for column, value in WATERMARKS["margin"][1].items():
        cells[f"{label} ERM, source", column] = (erm, value)
        cells[f"{label} ERM, soft", column] = (lambda seed: runs.named(erm(seed))["soft"], value)
        cells[f"{label} margin with clean statistics, source", column] = (runs.source, of_clean_statistics(value))
        cells[f"{label} margin with clean statistics, soft", column] = (
            lambda seed: runs.clean_soft(runs.source(seed)), value)
    return cells


def _rival_cells(runs, method, label, dataset) -> dict:
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
    cells = _both("source", runs.source)
    if "SVHN" in runs.profile.other:
        cells |= _both("soft, SVHN images", lambda seed: other_images(runs, runs.source(seed), "SVHN"))
    vgg11 = lambda seed: runs.attack(runs.source(seed), "vgg11", "-at soft", model="vgg11")
    return cells | _both("soft, VGG-11", vgg11)


def _table5(runs):
    margin = lambda model: lambda seed: runs.analysis(runs.named(runs.source(seed))[model], "margin")
    return {(model, "margin, pixels in [0, 1]"): (margin(model), value_of("mean")) for model in MODELS}


def _table6(runs):
    return _mixup_cells(runs, 2) | _mixup_cells(runs, 5)


def _mixup_cells(runs, k) -> dict:
    """Table 6 for triggers of k images; the attacks get -nm too, because it is a part of the trigger set's name."""
    source = lambda seed: mixup_source(runs, seed, k)
    distill = lambda seed: runs.attack(source(seed), "distill", f"-nm {k}", script="distill")
    soft = lambda seed: runs.attack(source(seed), "soft", f"-nm {k}")
    cells = _both(f"k = {k}, source", source) | _both(f"k = {k}, distill", distill) | _both(f"k = {k}, soft", soft)
    if "CIFAR-100" in runs.profile.other:
        other = lambda seed: other_images(runs, source(seed), "CIFAR-100", f"-nm {k}")
        cells |= _both(f"k = {k}, soft, CIFAR-100 images", other)
    return cells


def _table7(runs):
    models = {m: (lambda seed, m=m: runs.named(runs.source(seed))[m]) for m in ("source", "reg", "soft")}
    if runs.profile.other:
        first = next(iter(runs.profile.other))
        models["soft, other images"] = lambda seed: other_images(runs, runs.source(seed), first)
    cells = {}
    for model, step in models.items():
        energy = lambda seed, step=step: runs.analysis(step(seed), "energy")
        cells |= {(model, ACC): (energy, accuracy_percent), (model, "energy of D"): (energy, value_of("energy_clean")),
                  (model, "energy of successes"): (energy, value_of("energy_success")),
                  (model, "energy of failures"): (energy, value_of("energy_failed")),
                  (model, "triggers refused at 5 % refused clean images, %"):
                      (energy, value_of("refused_at_5_percent", 100))}
    return cells


def _table8(runs):
    steal = lambda seed: runs.attack(runs.source(seed), "margin", "-at margin")
    return _both("source", runs.source) | _both("margin extraction", steal)


def _table9(runs):
    flags = f"-at finetune -ep {runs.profile.finetune}"
    tune = lambda seed: runs.attack(runs.source(seed), "finetune", flags, edits=True)
    return _both("source", runs.source) | _both("fine-tuned", tune)


TABLE_CELLS = {"table1": _table1, "table2": _table2, "table3": _table3, "table4": _table4, "table5": _table5,
               "table6": _table6, "table7": _table7, "table8": _table8, "table9": _table9}
TABLES, FIGURES = tuple(TABLE_CELLS), tuple(f"figure{i}" for i in range(1, 9))


# ---- steps that several cells share ----


def _both(row, step) -> dict:
    """A row's cells for accuracy and triggers; `step` is a function of a seed."""
    return {(row, ACC): (step, accuracy_percent), (row, TRIG): (step, trigger_percent)}


def rival_verdict(runs, method, seed, dataset) -> tuple[dict, RunStep]:
    """({model: step} for `MODELS`, the step that tests them) of DI or EEF; EEF's benign model is DI's source."""
    plain = runs.source(seed, "none", dataset=dataset)
    if method == "DI":
        models = runs.named(plain)
        return models, runs.verdict("di", plain, list(models.values())[1:])
    models = runs.named(runs.source(seed, "none", "eef-", runs.profile.styled, dataset=dataset))
    return models, runs.verdict("eef", models["source"], list(models.values()), benign=(plain,))


def mixup_source(runs, seed, k):
    """The step of a source whose triggers are means of k images (appendix B.3)."""
    return runs.source(seed, tag=f"mix{k}-", extra=f"-nm {k}")


def other_images(runs, source, label, extra=""):
    """The step of a soft extraction with the images of another data set; `label` is its name in `Profile.other`."""
    data = runs.profile.other[label]
    return runs.attack(source, data, f"-at soft -dsrc {data} {extra}")
