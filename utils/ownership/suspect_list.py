"""Many suspects: the list of `claim --suspects`, Holm's correction over it, and its table."""

import math

from utils.ownership.judging import Suspect
from utils.system.files import read_bounded
from utils.system.refusals import Refusal

KINDS = ("predictions", "suspect", "command", "url")
LIMIT = 1000  # suspects of a list


def read_suspects(path) -> list[Suspect]:
    """The suspects of a text file: a line each, KIND VALUE, as `suspect experiments/a` or `predictions answers.csv`.

    KIND is one of `KINDS`, VALUE what the flag of that name takes; empty lines and lines from # on are left out.
    Raises Refusal, which names the line, for anything else, for a suspect named twice, and for an empty list.
    """
    try:
        lines = read_bounded(path).decode().splitlines()
    except FileNotFoundError as error:
        raise Refusal(f"--suspects {path} does not exist; name a text file with a suspect a line") from error
    except UnicodeDecodeError as error:
        raise Refusal(f"--suspects {path} is no text") from error
    suspects = []
    for number, line in enumerate(lines, 1):
        kind, _, value = line.strip().partition(" ")
        if not kind or kind.startswith("#"):
            continue
        suspect = Suspect(kind, value.strip())
        if kind not in KINDS or not suspect.value:
            raise Refusal(f"--suspects {path}, line {number}: {line.strip()[:60]!r} is not one of "
                          f"{', '.join(KINDS)} and what that flag takes")
        if suspect in suspects:
            raise Refusal(f"--suspects {path}, line {number}: {suspect.value[:60]} is there twice")
        suspects.append(suspect)
    if not 0 < len(suspects) <= LIMIT:
        raise Refusal(f"--suspects {path} names {len(suspects)} suspects; 1 to {LIMIT} can be judged")
    return suspects


def holm(log10_p: list[float]) -> list[float]:
    """Holm's adjusted p-values as log10: the i-th smallest of n times n - i + 1, made monotone, at most 1.

    Rejecting where they are at most alpha keeps the probability of any false claim at alpha, whatever the dependence.
    """
    n, worst = len(log10_p), -math.inf
    adjusted = [0.0] * n
    for rank, i in enumerate(sorted(range(n), key=lambda i: log10_p[i])):
        worst = max(worst, min(0.0, log10_p[i] + math.log10(n - rank)))
        adjusted[i] = worst
    return adjusted


def decide_together(reports: list[dict], alpha: float) -> None:
    """Put Holm's correction into the decisions of `OwnershipCase.report`, in place, as "holm_log10_p".

    A claim that was refused without a p-value counts in the list as p = 1, and stays refused.
    """
    adjusted = holm([report["decision"].get("log10_p", 0.0) for report in reports])
    for report, p in zip(reports, adjusted):
        decision = report["decision"]
        if "log10_p" in decision:
            decision |= {"holm_log10_p": p, "holds": bool(decision["holds"] and p <= math.log10(alpha))}


def suspects_table(suspects: list[Suspect], reports: list[dict], alpha: float) -> str:
    """A line for each suspect, then why claims were refused without a p-value, then the decision in one sentence."""
    width = max(len(suspect.value) for suspect in suspects)
    lines = [f"{'suspect':<{width}}  {'hits':>9}  {'log10 p':>8}  {'Holm':>8}  claim"]
    for suspect, report in zip(suspects, reports):
        d = report["decision"]
        cells = ["-" if d.get(key) is None else f"{d[key]:.2f}" for key in ("log10_p", "holm_log10_p")]
        hits = f"{report['hits']}/{report['triggers']}"
        lines.append(f"{suspect.value:<{width}}  {hits:>9}  {cells[0]:>8}  {cells[1]:>8}  "
                     f"{'holds' if d['holds'] else 'does not hold'}")
    for why in dict.fromkeys(r["decision"]["why"] for r in reports if "log10_p" not in r["decision"]):
        lines.append(f"refused without a p-value: {why}")
    held = sum(report["decision"]["holds"] for report in reports)
    return "\n".join([*lines, f"The claim holds against {held} of {len(reports)} suspects; the probability that any of "
                      f"them is claimed falsely is {alpha:g} at most (Holm)."])
