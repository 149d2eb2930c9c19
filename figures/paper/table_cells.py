"""TODO (figures.plan)"""

from figures.paper.commands import RunCommands, RunStep
from figures.paper.numbers import ACC, MODELS, TRIG, P

TABLES, FIGURES = tuple(f"table{i}" for i in range(1, 10)), tuple(f"figure{i}" for i in range(1, 9))
def accuracy_percent(result):
    return 100 * result["test_accuracy"]


def trigger_percent(result):
    return 100 * result["trigger_hits"] / result["trigger_size"]


def t1_log10_p(result):
    return result["log10_p"]["T1"]


def benign_trigger_percent(result):
    return trigger_percent(next(row for row in result["rows"] if row["model"].startswith("benign")))


def value_of(name, factor=1):
    return lambda result: None if result[name] is None else factor * result[name]


def rival_log10_p(i):
    """Of the i-th model of `MODELS`, from what `judged` wrote: DI's source has a place of its own."""
    return lambda result: [*filter(None, [result.get("source")]), *result["suspects"]][i]["log10_p"]


# rows of Tables 2 and 3: name -> (-tt, {column: value}). A rival with triggers is a line here; those without (DI, EEF)
# are `judged`, whose cells `cells` adds to table2's. A row that is not here says "not run"
WATERMARKS = {
    "EWE": ("ewe", {ACC: accuracy_percent, TRIG: trigger_percent}),
    "RS": ("rs", {ACC: accuracy_percent, TRIG: trigger_percent}),
    "margin": ("margin", {ACC: accuracy_percent, TRIG: trigger_percent, P: t1_log10_p}),
}


def table_cells(name: str, runs: RunCommands) -> dict:
    """The cells of a table that can be made in this profile."""
    p = runs.profile
    both = lambda row, step: {(row, ACC): (step, accuracy_percent), (row, TRIG): (step, trigger_percent)}
    soft = lambda s, **kw: runs.attack(s, "soft", "-at soft", **kw)
    if name == "table1":
        erm = lambda seed: runs.source(seed, "base")
        return both("source", erm) | both("soft", lambda seed: soft(erm(seed)))
    if name == "table2":
        made = {}
        for label, dataset in (("CIFAR-10", p.dataset), ("CIFAR-100", "cifar100"))[: 2 if p.wide else 1]:
            for method, (kind, values) in WATERMARKS.items():
                for model in MODELS:
                    step = lambda seed, d=dataset, k=kind, m=model: runs.named(runs.source(seed, k, dataset=d))[m]
                    made |= {(f"{label} {method}, {model}", column): (step, value) for column, value in values.items()}
            for method in ("DI", "EEF") if label == "CIFAR-10" else ("DI",):
                both_of = lambda seed, d=dataset, w=method: rival_verdict(runs, w, seed, d)
                for i, model in enumerate(MODELS):
                    row = f"{label} {method}, {model}"
                    made[row, ACC] = (lambda seed, of=both_of, m=model: of(seed)[0][m], accuracy_percent)
                    made[row, P] = (lambda seed, of=both_of: of(seed)[1], rival_log10_p(i))
        return made
    if name == "table3":
        return {(method, TRIG): (lambda seed, k=kind: runs.source(seed, k), benign_trigger_percent)
                for method, (kind, values) in WATERMARKS.items() if TRIG in values}
    if name == "table4":
        made = both("source", runs.source)
        if "SVHN" in p.other:
            made |= both("soft, SVHN images", lambda seed: other_images(runs, runs.source(seed), "SVHN"))
        vgg = lambda seed: runs.attack(runs.source(seed), "vgg11", "-at soft", model="vgg11")
        return made | both("soft, VGG-11", vgg)
    if name == "table5":
        bound = lambda m: lambda seed: runs.analysis(runs.named(runs.source(seed))[m], "margin")
        return {(m, "margin, pixels in [0, 1]"): (bound(m), value_of("mean")) for m in MODELS}
    if name == "table6":
        made = {}
        for k in (2, 5):
            source = lambda seed, k=k: mixup_source(runs, seed, k)
            # the attack's own flags name the trigger set, the mixup number among them
            made |= both(f"k = {k}, source", source)
            distil = lambda seed, k=k: runs.attack(mixup_source(runs, seed, k), "distill", f"-nm {k}", script="distill")
            made |= both(f"k = {k}, distill", distil)
            made |= both(f"k = {k}, soft",
                         lambda seed, k=k: runs.attack(mixup_source(runs, seed, k), "soft", f"-nm {k}"))
            if "CIFAR-100" in p.other:
                far = lambda seed, k=k: other_images(runs, mixup_source(runs, seed, k), "CIFAR-100", f"-nm {k}")
                made |= both(f"k = {k}, soft, CIFAR-100 images", far)
        return made
    if name == "table7":
        models = {m: (lambda seed, m=m: runs.named(runs.source(seed))[m]) for m in ("source", "reg", "soft")}
        if p.other:
            models["soft, other images"] = lambda seed: other_images(runs, runs.source(seed), next(iter(p.other)))
        made = {}
        for m, step in models.items():
            at = lambda seed, step=step: runs.analysis(step(seed), "energy")
            made |= {(m, ACC): (at, accuracy_percent), (m, "energy of D"): (at, value_of("energy_clean")),
                     (m, "energy of successes"): (at, value_of("energy_success")),
                     (m, "energy of failures"): (at, value_of("energy_failed")),
                     (m, "triggers refused at 5 % refused clean images, %"):
                         (at, value_of("refused_at_5_percent", 100))}
        return made
    if name == "table8":
        steal = lambda seed: runs.attack(runs.source(seed), "margin", "-at margin")
        return both("source", runs.source) | both("margin extraction", steal)
    tune = lambda seed: runs.attack(runs.source(seed), "finetune", f"-at finetune -ep {p.finetune}", edits=True)
    return both("source", runs.source) | both("fine-tuned", tune)


def rival_verdict(runs, method, seed, dataset) -> tuple[dict, RunStep]:
    """DI's or EEF's models, `MODELS` in order, and the step that judges them; EEF's benign one is DI's source."""
    plain = runs.source(seed, "none", dataset=dataset)
    if method == "DI":
        models = runs.named(plain)
        return models, runs.verdict("di", plain, list(models.values())[1:])
    models = runs.named(runs.source(seed, "none", "eef-", runs.profile.styled, dataset=dataset))
    return models, runs.verdict("eef", models["source"], list(models.values()), benign=(plain,))


def mixup_source(runs, seed, k):
    return runs.source(seed, tag=f"mix{k}-", extra=f"-nm {k}")


def other_images(runs, source, label, extra=""):
    data = runs.profile.other[label]
    return runs.attack(source, data, f"-at soft -dsrc {data} {extra}")
