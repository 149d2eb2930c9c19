"""What each table and figure needs: its cells, each a step for each seed and a number of that step's JSON."""

import shlex

from figures.paper import ACC, MODELS, TRIG, P
from figures.runs import Runs, Step

TABLES, FIGURES = tuple(f"table{i}" for i in range(1, 10)), tuple(f"figure{i}" for i in range(1, 9))


# ---- what each table needs: {(row, column): (function of a seed -> step, function of its JSON -> number)} -----------


def accuracy(result):
    return 100 * result["test_accuracy"]


def triggers(result):
    return 100 * result["trigger_hits"] / result["trigger_size"]


def log10_p(result):
    return result["log10_p"]["T1"]


def benign_triggers(result):
    return triggers(next(row for row in result["rows"] if row["model"].startswith("benign")))


def number(name, factor=1):
    return lambda result: None if result[name] is None else factor * result[name]


def judged_p(i):
    """Of the i-th model of `MODELS`, from what `judged` wrote: DI's source has a place of its own."""
    return lambda result: [*filter(None, [result.get("source")]), *result["suspects"]][i]["log10_p"]


# rows of Tables 2 and 3: name -> (-tt, {column: value}). A rival with triggers is a line here; those without (DI, EEF)
# are `judged`, whose cells `cells` adds to table2's. A row that is not here says "not run"
WATERMARKS = {
    "EWE": ("ewe", {ACC: accuracy, TRIG: triggers}),
    "RS": ("rs", {ACC: accuracy, TRIG: triggers}),
    "margin": ("margin", {ACC: accuracy, TRIG: triggers, P: log10_p}),
}


def cells(name: str, runs: Runs) -> dict:
    """The cells of a table that can be made in this profile."""
    p = runs.profile
    both = lambda row, step: {(row, ACC): (step, accuracy), (row, TRIG): (step, triggers)}
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
                both_of = lambda seed, d=dataset, w=method: judged(runs, w, seed, d)
                for i, model in enumerate(MODELS):
                    row = f"{label} {method}, {model}"
                    made[row, ACC] = (lambda seed, of=both_of, m=model: of(seed)[0][m], accuracy)
                    made[row, P] = (lambda seed, of=both_of: of(seed)[1], judged_p(i))
        return made
    if name == "table3":
        return {(method, TRIG): (lambda seed, k=kind: runs.source(seed, k), benign_triggers)
                for method, (kind, values) in WATERMARKS.items() if TRIG in values}
    if name == "table4":
        made = both("source", runs.source)
        if "SVHN" in p.other:
            made |= both("soft, SVHN images", lambda seed: other(runs, runs.source(seed), "SVHN"))
        vgg = lambda seed: runs.attack(runs.source(seed), "vgg11", "-at soft", model="vgg11")
        return made | both("soft, VGG-11", vgg)
    if name == "table5":
        bound = lambda m: lambda seed: runs.analysis(runs.named(runs.source(seed))[m], "margin")
        return {(m, "margin, pixels in [0, 1]"): (bound(m), number("mean")) for m in MODELS}
    if name == "table6":
        made = {}
        for k in (2, 5):
            source = lambda seed, k=k: mixed(runs, seed, k)
            # the attack's own flags name the trigger set, the mixup number among them
            made |= both(f"k = {k}, source", source)
            distil = lambda seed, k=k: runs.attack(mixed(runs, seed, k), "distill", f"-nm {k}", script="distill")
            made |= both(f"k = {k}, distill", distil)
            made |= both(f"k = {k}, soft", lambda seed, k=k: runs.attack(mixed(runs, seed, k), "soft", f"-nm {k}"))
            if "CIFAR-100" in p.other:
                far = lambda seed, k=k: other(runs, mixed(runs, seed, k), "CIFAR-100", f"-nm {k}")
                made |= both(f"k = {k}, soft, CIFAR-100 images", far)
        return made
    if name == "table7":
        models = {m: (lambda seed, m=m: runs.named(runs.source(seed))[m]) for m in ("source", "reg", "soft")}
        if p.other:
            models["soft, other images"] = lambda seed: other(runs, runs.source(seed), next(iter(p.other)))
        made = {}
        for m, step in models.items():
            at = lambda seed, step=step: runs.analysis(step(seed), "energy")
            made |= {(m, ACC): (at, accuracy), (m, "energy of D"): (at, number("energy_clean")),
                     (m, "energy of successes"): (at, number("energy_success")),
                     (m, "energy of failures"): (at, number("energy_failed")),
                     (m, "triggers refused at 5 % refused clean images, %"): (at, number("refused_at_5_percent", 100))}
        return made
    if name == "table8":
        steal = lambda seed: runs.attack(runs.source(seed), "margin", "-at margin")
        return both("source", runs.source) | both("margin extraction", steal)
    tune = lambda seed: runs.attack(runs.source(seed), "finetune", f"-at finetune -ep {p.finetune}", edits=True)
    return both("source", runs.source) | both("fine-tuned", tune)


def judged(runs, method, seed, dataset) -> tuple[dict, Step]:
    """DI's or EEF's models, `MODELS` in order, and the step that judges them; EEF's benign one is DI's source."""
    plain = runs.source(seed, "none", dataset=dataset)
    if method == "DI":
        models = runs.named(plain)
        return models, runs.verdict("di", plain, list(models.values())[1:])
    models = runs.named(runs.source(seed, "none", "eef-", runs.profile.styled, dataset=dataset))
    return models, runs.verdict("eef", models["source"], list(models.values()), benign=(plain,))


def mixed(runs, seed, k):
    return runs.source(seed, tag=f"mix{k}-", extra=f"-nm {k}")


def other(runs, source, label, extra=""):
    data = runs.profile.other[label]
    return runs.attack(source, data, f"-at soft -dsrc {data} {extra}")


# ---- what each figure needs: a list of series, each {x: cell} -------------------------------------------------------


def sweep(variants, steal):
    """Series of a sweep: `variants` {x: function of a seed -> source}."""
    made = {}
    for x, source in variants.items():
        made["source, accuracy", x] = (source, accuracy)
        made["surrogate, accuracy", x] = (lambda seed, s=source: steal(s(seed)), accuracy)
        made["surrogate, triggers", x] = (lambda seed, s=source: steal(s(seed)), triggers)
    return made


def panels(name: str, runs: Runs) -> dict:
    """{axis label: {(series, x): (function of a seed -> step, value)}} of a figure of lines or bars."""
    p = runs.profile
    soft = lambda source: runs.attack(source, "soft", "-at soft")
    if name == "figure1":
        t2 = cells("table2", runs)
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
        return {"labels of the triggers": sweep({s: labelled(s) for s in ("highest", "random", "lowest")}, soft)}
    if name == "figure4":
        made = {}
        for a in p.alphas:
            step = lambda seed, a=a: runs.attack(runs.source(seed), f"a{a}", f"-a {a}", script="distill")
            made["surrogate, accuracy", a], made["surrogate, triggers", a] = (step, accuracy), (step, triggers)
        return {"α, weight of the source's answers in distillation": made}
    if name == "figure6":
        k5 = lambda k: runs.source if k == 5 else lambda seed: runs.source(seed, tag=f"K{k}-", extra=f"--steps {k}")
        sized = lambda m: runs.source if m == p.m else lambda seed: runs.source(seed, m=m)
        weighted = lambda v: lambda seed: runs.source(seed, tag=f"v{v}-", extra=f"--reduction sum -v {v}")
        return {"(a) ascent steps K, eps = K/255": sweep({k: k5(k) for k in p.K}, soft),
                "(b) number m of triggers": sweep({m: sized(m) for m in p.sizes}, soft),
                "(c) λ of Eq. 4": sweep({v: weighted(v) for v in p.weights}, soft)}
    made, ratios = {}, [round(0.1 * i, 1) for i in range(10)]
    cut = lambda seed: runs.attack(runs.source(seed), "prune", "-at prune --on extraction_soft",
                                   edits=True, needs=(soft(runs.source(seed)),))
    for i, ratio in enumerate(ratios):
        made["surrogate, accuracy", ratio] = (cut, lambda r, i=i: accuracy(r["rows"][i]))
        made["surrogate, triggers", ratio] = (cut, lambda r, i=i: triggers(r["rows"][i]))
    return {"pruned share of each layer's channels": made}


def steps_of(name: str, runs: Runs) -> list[Step]:
    """All steps of a target, each after those it needs."""
    found = []

    def visit(step):
        for before in step.needs:
            visit(before)
        if step not in found:
            found.append(step)

    for seed in runs.profile.seeds:
        for step in _wanted(name, runs):
            visit(step(seed))
    return found


def _wanted(name, runs):
    if name == "figure2":
        return []
    if name == "figure5":
        return [lambda seed: mixed(runs, seed, 2)]
    if name == "figure7":
        return [lambda seed, m=m: runs.analysis(runs.named(runs.source(seed))[m], "tsne") for m in MODELS]
    if name in TABLES:
        return [step for step, _ in cells(name, runs).values()]
    return [step for cell in panels(name, runs).values() for step, _ in cell.values()]
