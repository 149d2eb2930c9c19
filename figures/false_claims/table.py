"""rivals.md: the false claims of each verification, counted, with Clopper-Pearson intervals."""

from figures.false_claims.perceptrons import (
    HIDDEN,
    PERCEPTRON_EPOCHS,
    PERCEPTRON_IMAGES,
    PERCEPTRON_M,
    PERCEPTRON_POINTS,
)
from figures.false_claims.settings import BENIGN, COMMON, EEF_FLAGS, HALVES, SOURCES, TESTS
from figures.false_claims.t1_rates import interval
from utils.ownership.verdict import MIN_BANK

READING = f"""How to read it. None of these models is a copy, so every claim is false; that DI claims models which
learnt the source's images is its design: it asks for knowledge of images, not for theft. Few models say little: with
none of 10 claimed a rate of 0.3 is still possible, and a level of 0.001 cannot be confirmed here. But for DI, whose
every draw is new, the models of a row face one source, one trigger set or style and, under EEF, one benign model and
one bank: the interval is about further models, not about further sources. T1 is exact whatever a suspect is (errors.md
draws labels anew). T2 and T4 hold as far as their bank is like the suspect; with {MIN_BANK} others T4 has a level of
1/{MIN_BANK + 1}. The p of DI and EEF is a harmonic mean of overlapping tests, which has no level even on paper.
"""


def count_verdicts(verdicts: list[dict]) -> list[dict]:
    """Rows of `verdict_row` -> a row for each method, test, level and half of the images, with counts and interval."""
    groups = {}
    for row in verdicts:
        groups.setdefault((row["method"], row["test"], row["level"], row["shares"]), []).append(row["claimed"])
    return [{**dict(zip(("method", "test", "level", "shares"), key)), "claims": sum(claimed), "of": len(claimed),
             "interval": interval(sum(claimed), len(claimed))} for key, claimed in groups.items()]


def rivals_markdown(figures: dict) -> str:
    """The content of rivals.md; `figures` is that of rivals.json."""
    lines = ["# False claims of benign models, measured", "", "`python -m figures.rivals`, on digits.", "",
             "| method | test | level | benign models learnt | false claims | 95 % interval (Clopper-Pearson) |",
             "|---|---|---|---|---|---|"]
    for row in count_verdicts(figures["verdicts"]):
        low, high = row["interval"]
        lines.append(f"| {row['method']} | {TESTS[row['test']]} | {row['level']:.3g} | {HALVES[row['shares']]} | "
                     f"{row['claims']} of {row['of']} | {low:.3f} to {high:.3f} |")
    claims = []
    for name, source in figures["sources"].items():
        hits = f", {source['hits']} of {source['of']} triggers hit" if "hits" in source else ""
        claims.append(f"{name} {'claimed' if source['claimed'] else 'NOT claimed'}{hits}")
    draws = [repeat["source"]["claim"] for repeat in figures["perceptrons"]]
    claims.append(f"DI claimed in {sum(draws)} of {len(draws)} draws")
    lines += ["", f"The sources themselves: {'; '.join(claims)}.", ""]
    lines += [f"Settings (`train.py {COMMON}` everywhere):", ""]
    for name, values in figures["benign"].items():
        lines.append(f"- {len(values)} benign models that learnt {HALVES[name]}: `{BENIGN}`, test accuracy "
                     f"{100 * min(values):.1f} to {100 * max(values):.1f} %; same architecture, size and settings")
    lines += [f"- source {name}: `{flags}`" + (f"; judged with `{EEF_FLAGS}`" if name == "EEF" else "")
              for name, flags in SOURCES.items()]
    points = PERCEPTRON_POINTS
    lines.append(f"- DI: perceptrons of {HIDDEN} hidden units on {PERCEPTRON_IMAGES} images, {PERCEPTRON_EPOCHS} "
                 f"epochs, a third of the labels redrawn; {points} private and {points} unseen points, "
                 f"m = {PERCEPTRON_M}")
    return "\n".join([*lines, "", READING])
