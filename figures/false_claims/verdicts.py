"""TODO (figures.rivals)"""

import contextlib
import io
import json
import shlex
import tempfile
from pathlib import Path

from figures.false_claims.settings import ALPHAS, EEF_FLAGS
from utils.ownership.verdict import MIN_BANK
from utils.rivals.embedded_features.command import EEF_ALPHA
from utils.verify import main as verify_main


def ask_verify(*words) -> tuple[bool, dict]:
    """(whether everything was claimed, the figures) of a command of utils.verify."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "figures.json"
        status = verify_main([*map(str, words), "--json", str(path)])
        return status == 0, json.loads(path.read_text())


def verdict_row(method, test, level, shares, claimed, **more) -> dict:
    """One judgement of one benign model."""
    return {"method": method, "test": test, "level": level, "shares": shares, "claimed": bool(claimed), **more}


def trigger_verdicts(name: str, source: Path, benign: dict, bar):
    """(whether the source is claimed at each level, verdicts): by T1, or by T2 and T4 with five others as a bank."""
    def judge(suspect, bank):
        flags = ["claim", source, "--suspect", suspect, *(["--benign", *bank] if bank else [])]
        return [ask_verify(*flags, "--alpha", alpha) for alpha in ALPHAS]

    same, test = benign["same"], "T1" if name == "margin" else "T2"
    banks = lambda i: [] if test == "T1" else [same[(i + j) % len(same)] for j in range(1, MIN_BANK + 1)]
    verdicts = []
    for shares, models in benign.items():
        for i, model in enumerate(models):
            decisions = judge(model, banks(i))
            figures = decisions[0][1]
            about = {"hits": figures["hits"], "of": figures["triggers"], "log10_p": figures["tests"][test]["log10_p"]}
            verdicts += [verdict_row(name, test, alpha, shares, holds, **about)
                         for alpha, (holds, _) in zip(ALPHAS, decisions)]
            if test == "T2":
                p = figures["tests"]["T4"]["log10_p"]
                level = 1 / (MIN_BANK + 1)
                verdicts.append(verdict_row(name, "T4", level, shares, 10**p < 1.5 * level, log10_p=p))
            bar.update()
    holds, figures = judge(source, banks(0))[-1]
    return {"claimed": holds, "hits": figures["hits"], "of": figures["triggers"]}, verdicts


def eef_verdicts(source: Path, benign: dict, images: Path, bar):
    """(whether EEF claims the victim, verdicts): the classifier learns the first benign model, the next five are the
    bank of the calibrated rule."""
    first, bank = benign["same"][0], benign["same"][1 : MIN_BANK + 1]
    judged = [("same", run) for run in benign["same"][MIN_BANK + 1 :]] + [("other", run) for run in benign["other"]]
    _, figures = ask_verify("eef", source, "--data-dir", images, "--benign", first, *bank, "--device", "cpu",
                     *shlex.split(EEF_FLAGS), "--suspect", source, *(run for _, run in judged))
    victim, *rows = figures["suspects"]
    verdicts = []
    for (shares, _), row in zip(judged, rows):
        about = {"log10_p": row["log10_p"], "difference": row["difference"]}
        verdicts += [verdict_row("EEF", "published", EEF_ALPHA, shares, row["published"], **about),
                     verdict_row("EEF", "calibrated", EEF_ALPHA, shares, row["claim"], above=row["above"], **about)]
    bar.update(len(benign["same"]) + len(benign["other"]))
    return {"claimed": victim["claim"], "difference": victim["difference"]}, verdicts
