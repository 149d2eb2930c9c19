"""How the commands of utils.verify decide on benign models, whose claims are all false: T1, T2, T4 and EEF.

`claim` compares each model with a bank of `MIN_BANK` others, and `eef` with `MIN_BANK` others. The bank of `claim`
changes from suspect to suspect, so that no model is compared with itself.
"""

import contextlib
import io
import json
import shlex
import tempfile
from pathlib import Path

from figures.false_claims.settings import ALPHAS, EEF_FLAGS
from utils.ownership.verdict import MIN_BANK
from utils.rivals.embedded_features import EEF_ALPHA
from utils.verify import main as verify_main


def ask_verify(*words) -> tuple[bool, dict]:
    """(whether all suspects were claimed, the JSON that it writes) of a command of utils.verify."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "figures.json"
        status = verify_main([*map(str, words), "--json", str(path)])
        return status == 0, json.loads(path.read_text())


def verdict_row(method, test, level, shares, claimed, **more) -> dict:
    """The verdict of one test at one level on one benign model; `shares` is a key of HALVES."""
    return {"method": method, "test": test, "level": level, "shares": shares, "claimed": bool(claimed), **more}


def trigger_verdicts(name: str, source: Path, benign: dict, bar):
    """(figures of the source `name`, verdicts on all models of `benign`) of `utils.verify claim`.

    By the owner's T1 on the margin source, else by T2 and T4 with five other models of the source's images as the bank.
    """
    def decide(suspect, bank):
        flags = ["claim", source, "--suspect", suspect, "--trust-owner", *(["--benign", *bank] if bank else [])]
        return [ask_verify(*flags, "--alpha", alpha) for alpha in ALPHAS]

    same, test = benign["same"], "T1" if name == "margin" else "T2"
    bank_without = lambda i: [] if test == "T1" else [same[(i + j) % len(same)] for j in range(1, MIN_BANK + 1)]
    verdicts = []
    for shares, models in benign.items():
        for i, model in enumerate(models):
            decisions = decide(model, bank_without(i))
            figures = decisions[0][1]
            more = {"hits": figures["hits"], "of": figures["triggers"], "log10_p": figures["tests"][test]["log10_p"]}
            verdicts += [verdict_row(name, test, alpha, shares, holds, **more)
                         for alpha, (holds, _) in zip(ALPHAS, decisions)]
            if test == "T2":
                p = figures["tests"]["T4"]["log10_p"]
                level = 1 / (MIN_BANK + 1)
                verdicts.append(verdict_row(name, "T4", level, shares, 10**p < 1.5 * level, log10_p=p))
            bar.update()
    holds, figures = decide(source, bank_without(0))[-1]
    return {"claimed": holds, "hits": figures["hits"], "of": figures["triggers"]}, verdicts


def eef_verdicts(source: Path, benign: dict, images: Path, bar):
    """(figures of the victim, verdicts on benign models) of `utils.verify eef`.

    The classifier is trained on the first model of the source's images; the next five are the bank of the calibrated
    rule; all others are suspects.
    """
    first, bank = benign["same"][0], benign["same"][1 : MIN_BANK + 1]
    suspects = [("same", run) for run in benign["same"][MIN_BANK + 1 :]] + [("other", run) for run in benign["other"]]
    _, figures = ask_verify("eef", source, "--data-dir", images, "--benign", first, *bank, "--device", "cpu",
                            *shlex.split(EEF_FLAGS), "--suspect", source, *(run for _, run in suspects))
    victim, *rows = figures["suspects"]
    verdicts = []
    for (shares, _), row in zip(suspects, rows):
        more = {"log10_p": row["log10_p"], "difference": row["difference"]}
        verdicts += [verdict_row("EEF", "published", EEF_ALPHA, shares, row["published"], **more),
                     verdict_row("EEF", "calibrated", EEF_ALPHA, shares, row["claim"], above=row["above"], **more)]
    bar.update(len(benign["same"]) + len(benign["other"]))
    return {"claimed": victim["claim"], "difference": victim["difference"]}, verdicts
