"""`python -m utils.verify claim RUN`: judge a suspect's answers to the triggers of a run.

Exit status: 0 the claim holds, 1 it does not hold, 2 an error.
"""

import argparse
import math
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.answers.answers import (
    Answer,
    Answers,
    Classes,
    answers_from_file,
    answers_of_model,
    gather_answers,
    read_kept,
    read_lines,
    require_complete,
)
from utils.answers.ask import (
    Program,
    Server,
    answers_of_onnx,
    answers_of_weights,
    check_pixels,
    keep_answer,
    own_classes,
)
from utils.data.files import write_pictures
from utils.ownership.commitment import Owner, read_owner
from utils.ownership.timestamp import TOKEN_LIMIT, Stamp, check_token
from utils.ownership.verdict import BETA, EXACT, OwnershipCase
from utils.runs.checkpoints import check_benign, find_checkpoint, load_checkpoint, restore_model
from utils.runs.networks import add_named_architectures
from utils.system.files import check_output_file, read_bounded, write_atomically, write_json
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import Refusal, number, printable
from utils.watermark.prepare import ALPHA
from utils.watermark.prepared import checked_beacon, describe_beacon, round_time, utc

KINDS = ("predictions", "suspect", "command", "url")
LIVE = ("command", "url")  # kinds of suspects that see the triggers when they are asked
MOST_SUSPECTS = 1000
AGAIN = "asking a suspect again that answers at random is not corrected for; --keep-answers asks each image once"
TITLES = {"T1": "label randomisation", "T1p": "score randomisation", "T2": "benign rate", "T3": "paired t",
          "T4": "rank among benign"}


class Suspect(NamedTuple):
    """Who is asked: kind "predictions" (a file), "suspect" (weights), "command" (a program) or "url" (a server)."""

    kind: str
    value: str


# ---- flags ----


def add_claim(parts) -> None:
    """Declare the command `claim` and its flags; `parts` are the subparsers of utils.verify."""
    c = parts.add_parser("claim", help="judge a suspect's answers to the exported triggers")
    c.set_defaults(call=judge_claim)
    c.add_argument("run", metavar="RUN", help="as for export")
    kinds = c.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--predictions", metavar="FILE", help=".csv (name,label or name,probabilities) or .npy")
    kinds.add_argument("--suspect", metavar="RUN", help="a run, a checkpoint, a .onnx, or plain weights, with -mt")
    kinds.add_argument("--command", metavar="'CMD {png}'", help="a program that prints a label, or a line for each")
    kinds.add_argument("--url", help="a server that gets each image by POST, as PNG, and answers in text or JSON")
    kinds.add_argument("--suspects", metavar="LIST", help="a file, a suspect a line; by Holm's correction")
    j = c.add_argument_group("who judges")
    j.add_argument("--trust-owner", action="store_true",
                   help="decide as for the owner himself: T1 on his word, or T2 where it does not apply")
    j.add_argument("--beacon", type=checked_beacon, metavar="HEX", help="the beacon's value, as you read it yourself")
    j.add_argument("--image-commitment", type=sha256_digest, metavar="SHA256",
                   help="the digest that `prepare` printed, as you saw it published before the beacon's value was")
    j.add_argument("--image-timestamp", type=Path, metavar="FILE",
                   help="or the token that `timestamp` wrote into the folder of `prepare`; needs --tsa-ca")
    j.add_argument("--tsa-ca", metavar="FILE", help="certificates (PEM) of the authority that signed it")
    j.add_argument("--alpha", type=number(float, 1e-300, 1 - 1e-9), default=ALPHA,
                   help="largest probability of a false claim (default: 0.001)")
    j.add_argument("--test", choices=EXACT, default="both", help="the exact test that decides: T1 of answers, T1p of "
                   "probabilities, or the smaller p, doubled (default; of labels alone T1)")
    j.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="the bank: models that know no watermark")
    a = c.add_argument_group("how suspects are asked")
    add_named_architectures(a, "a --suspect that is a plain state dict")
    a.add_argument("--columns", metavar="FILE", help="the suspect's class names in its own order, one a line")
    for name, low, about in (("--mean", -1e6, "subtracted"), ("--std", 1e-6, "divided by")):
        a.add_argument(name, nargs="+", type=number(float, low, 1e6), metavar="X",
                       help=f"an ONNX file or plain weights: numbers {about} after --scale (1 or 3)")
    a.add_argument("--scale", type=number(float, 1e-6, 1e6), metavar="X", help="the same: what white is (default: 1)")
    a.add_argument("--allow-missing", action="store_true", help="count triggers without an answer as misses")
    a.add_argument("--leave-out-missing", action="store_true",
                   help="leave them out of T1 instead: exact if it was the suspect who refused, as you saw yourself")
    a.add_argument("--timeout", type=number(float, 0, 1e6, open_low=True), default=60.0, metavar="S",
                   help="--command, --url: seconds to wait for an answer (default: 60)")
    a.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="--url: sent with each image")
    a.add_argument("--rate", type=number(float, 1e-4, 1e4), default=10.0, metavar="R",
                   help="--url: images a second at most (default: 10)")
    a.add_argument("--retries", type=number(int, 0, 100), default=3, metavar="N",
                   help="--url: how often to ask again after a passing failure (default: 3)")
    a.add_argument("--keep-answers", type=Path, metavar="FILE",
                   help="--command, --url: a file of your own; no image is asked again whose answer it holds")
    a.add_argument("--sequential", action="store_true", help="--command, --url: stop when Wald's test has decided")
    c.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    c.add_argument("--plot", type=Path, metavar="FILE.png", help="p-value against the number of queries")


def sha256_digest(text):
    """An argparse type: a SHA-256 digest in hexadecimal."""
    if not re.fullmatch("[0-9a-f]{64}", text.strip().lower()):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no SHA-256 in hexadecimal")
    return text.strip().lower()


def _suspects(flags) -> list[Suspect]:
    """Who is asked; Refusal where that is nobody or does not go with the other flags."""
    kind = next(kind for kind in (*KINDS, "suspects") if getattr(flags, kind) is not None)
    value = getattr(flags, kind)
    if not value.strip():
        raise Refusal(f"--{kind} is empty: say who is asked, as python -m utils.verify claim --help lists it")
    if (flags.sequential or flags.keep_answers) and kind not in LIVE:
        raise Refusal(f"--{'sequential' if flags.sequential else 'keep-answers'} is for one suspect that is asked "
                      "image by image: it needs --command or --url")
    if flags.test == "T1p" and (flags.sequential or kind == "command"):
        raise Refusal("--sequential and --command know labels alone, as T1 does: leave out --test T1p")
    if (flags.header and kind != "url") or (flags.plot and kind == "suspects"):
        raise Refusal("--header is sent to one server: it needs --url" if flags.header else
                      "--plot draws one suspect: leave it out, or name that one instead of --suspects")
    if bool(flags.tsa_ca) != bool(flags.image_timestamp):
        raise Refusal("--image-timestamp and --tsa-ca go together: a token, and the certificates that it leads to")
    if flags.keep_answers and flags.keep_answers.resolve().is_relative_to(Path(flags.run).resolve()):
        raise Refusal(f"--keep-answers {flags.keep_answers} lies in RUN, which is the owner's: name a file of your own")
    check_pixels(flags.mean, flags.std, flags.scale)
    return read_suspects(value) if kind == "suspects" else [Suspect(kind, value)]


def read_suspects(path) -> list[Suspect]:
    """The suspects of a text file: a line each, KIND VALUE, as `suspect experiments/a` or `predictions answers.csv`.

    KIND is one of `KINDS`, VALUE what the flag of that name takes; empty lines and lines from # on are left out.
    """
    suspects = []
    for place, line in enumerate(read_lines(path, "--suspects"), 1):
        kind, _, value = line.partition(" ")
        if not kind or kind.startswith("#"):
            continue
        suspect = Suspect(kind, value.strip())
        if kind not in KINDS or not suspect.value:
            raise Refusal(f"--suspects {path}, line {place}: {line[:60]!r} is not one of "
                          f"{', '.join(KINDS)} and what that flag takes")
        if suspect in suspects:
            raise Refusal(f"--suspects {path}, line {place}: {suspect.value[:60]} is there twice")
        suspects.append(suspect)
        if len(suspects) > MOST_SUSPECTS:
            break
    if not 0 < len(suspects) <= MOST_SUSPECTS:
        raise Refusal(f"--suspects {path} names {len(suspects)} suspects or more; 1 to {MOST_SUSPECTS} can be judged")
    return suspects


# ---- evidence ----


def find_doubts(owner: Owner, *, stranger: bool, beacon=None, image_commitment=None, stamp=None) -> list[str]:
    """What keeps a claim from holding before anybody is asked, sentences that name the flag which would help.

    A stranger needs the beacon as he read it and one of the others; for the owner only what is given has to be right.
    """
    record, doubts = owner.record, []
    if record is None:
        if stranger or beacon or image_commitment or stamp:
            doubts.append("nobody but the owner can say that he did not choose the labels: they are not of a "
                          "commitment by `prepare` and a beacon; --trust-owner takes his word")
        return doubts
    known, name = round_time(record), describe_beacon(record)
    if beacon and beacon != record["beacon"]:
        doubts.append(f"the labels were drawn by {record['beacon'][:16]}..., which is not the value of --beacon")
    if stranger and not beacon:
        doubts.append(f"only the owner says what value the beacon had: read it yourself ({name}) and pass --beacon")
    if known is not None and known > time.time():
        doubts.append(f"nobody can know the value of {name} yet")
    if known is None and "quicknet" in record["beacon_name"].lower():
        doubts.append(f"{name} is no round of drand quicknet whose date can be checked")
    if image_commitment and image_commitment != record["sha256"]:
        doubts.append("the images are not those of the published --image-commitment")
    if stamp and stamp.time is None:
        doubts.append(f"the --image-timestamp fails: {stamp.why}")
    elif stamp and known is None:
        doubts.append(f"no date is known of {name}, so a --image-timestamp cannot be older: leave it out, and pass "
                      "--image-commitment as you saw it published before")
    elif stamp and stamp.time >= known:
        doubts.append(f"the --image-timestamp is of {utc(stamp.time)}, when the beacon's value was known")
    if stranger and not (image_commitment or stamp):
        doubts.append("nothing shows that the images were fixed before the beacon: pass --image-commitment as "
                      "published, or --image-timestamp with --tsa-ca")
    return doubts


def bank_answers(runs, owner: Owner, classes: Classes) -> list[Answers]:
    """The answers of benign models, those of one model that is named more than once only once."""
    bank = []
    for run in runs:
        path = find_checkpoint(run, None)
        checkpoint = load_checkpoint(path)
        check_benign(checkpoint, run)
        answers = answers_of_model(restore_model(checkpoint, path), path, owner.triggers.images,
                                   own_classes(checkpoint, path, Classes(classes.names)))
        if not any(_same_model(answers, other) for other in bank):
            bank.append(answers)
    return bank


def _same_model(one: Answers, other: Answers) -> bool:
    """Whether answers are of the same weights: two trainings never give equal probabilities."""
    return one.probabilities is not None and bool(np.abs(one.probabilities - other.probabilities).max() < 1e-5)


# ---- asking and judging ----


def judge_claim(flags) -> int:
    """Print the tests, the decision and its sentence; write --json and --plot. 0 where a claim holds, else 1."""
    check_output_file(flags.json, "--json")
    check_output_file(flags.plot, "--plot")
    suspects, owner = _suspects(flags), read_owner(flags.run)
    classes = Classes(owner.classes, read_lines(flags.columns, "--columns") if flags.columns else None)
    stamp = None
    if flags.image_timestamp:
        token, digest = read_bounded(flags.image_timestamp, TOKEN_LIMIT), (owner.record or {}).get("sha256", "0" * 64)
        stamp = check_token(token, digest, flags.tsa_ca)
    stranger = not flags.trust_owner
    doubts = find_doubts(owner, stranger=stranger, beacon=flags.beacon, image_commitment=flags.image_commitment,
                         stamp=stamp)
    for suspect in suspects:
        if suspect.kind in LIVE:
            _respondent(suspect, flags)  # which refuses what cannot be asked, before anybody is
    bank = bank_answers(flags.benign, owner, classes)
    case = OwnershipCase(owner, bank, flags.alpha, stranger=stranger, doubts=doubts, exact=flags.test,
                         count_missing=not flags.leave_out_missing)
    reports = [_judge(case, owner, suspect, classes, flags) for suspect in suspects]
    head = _head(owner, stamp, len(flags.benign) - len(bank))
    if flags.suspects is not None:
        decide_together(reports, flags.alpha)
        print(printable("\n".join([*head, suspects_table(suspects, reports, flags.alpha)])))
        named = [{"kind": suspect.kind, "suspect": suspect.value} | report
                 for suspect, report in zip(suspects, reports)]
        report = {"suspects": named}
    else:
        (report,) = reports
        report["sentence"] = claim_sentence(report)
        print(printable("\n".join([*head, *claim_lines(report)])))
    if flags.json:
        record = owner.record or {}
        about = {name: record.get(name) for name in ("sha256", "beacon_name", "round", "beacon")}
        write_json(flags.json, {"commitment": about, "stamp": stamp and stamp._asdict()} | report, private=True)
    if flags.plot and report["curve"] is None:
        print(f"no plot {flags.plot}: there is no p-value to draw, for no test of a fixed number of queries applies")
    elif flags.plot:
        write_atomically(flags.plot, draw_claim_plot(report))
    return 0 if any(report["decision"]["holds"] for report in reports) else 1


def _respondent(suspect: Suspect, flags) -> Program | Server:
    """Whom to ask; Refusal where it cannot be asked in this way."""
    if suspect.kind == "url":
        asked = Server(suspect.value, tuple(flags.header), flags.timeout, flags.rate, flags.retries)
    else:
        asked = Program(suspect.value, flags.timeout)
    asked.check()
    if flags.sequential and asked.images_per_call > 1:
        raise Refusal("--sequential stops after any image: it needs {png}, one image a call, instead of {pngs}")
    return asked


def _judge(case: OwnershipCase, owner: Owner, suspect: Suspect, classes: Classes, flags) -> dict:
    """The report on one suspect, see `OwnershipCase.report`, with "sequential", "kept" and "curve"."""
    order = np.argsort(owner.names).tolist()  # alphabetical by name, which is a random order of the triggers
    images, missing_allowed, kept = owner.triggers.images, flags.allow_missing or flags.leave_out_missing, None
    pixels = check_pixels(flags.mean, flags.std, flags.scale)
    if suspect.kind in LIVE:
        answers, order, kept = _ask(case, owner, suspect, classes, flags, missing_allowed, order)
    elif suspect.kind == "predictions":
        answers = answers_from_file(suspect.value, owner.names, classes, missing_allowed)
    elif suspect.value.lower().endswith(".onnx"):
        answers = answers_of_onnx(Path(suspect.value), images, classes, pixels)
    else:
        answers = answers_of_weights(suspect.value, flags.model_type, images, classes, owner.mean_std, pixels)
    if any(_same_model(answers, other) for other in case.bank):
        raise Refusal(f"--benign names {suspect.value}, the suspect itself, which cannot be in its bank: leave it out")
    report = case.report(answers)
    report |= {"sequential": case.sequence(answers, order), "curve": case.curve(answers), "kept": kept,
               "live": suspect.kind in LIVE}
    if flags.sequential:
        decide_sequentially(report, len(order))
    return report


def _ask(case: OwnershipCase, owner: Owner, suspect: Suspect, classes: Classes, flags, missing_allowed: bool, order):
    """(answers, positions in the order asked, a sentence on answers that were kept or None) of a program or server."""
    names, respondent, file = owner.names, _respondent(suspect, flags), flags.keep_answers
    about = {"suspect": list(suspect), "images": sorted(names)}
    kept = read_kept(file, about, names, len(classes)) if file else {}
    given, asked, k = dict.fromkeys(names, Answer()), [], respondent.images_per_call
    so_far = lambda: gather_answers(list(given.values()), len(classes))
    bar = tqdm(total=len(names), disable=None, unit="image", leave=False)
    with tempfile.TemporaryDirectory() as folder, bar:
        write_pictures(owner.triggers.images, names, Path(folder))
        for start in range(0, len(order), k):
            part = order[start : start + k]
            new = [i for i in part if names[i] not in kept]
            found = respondent.ask([Path(folder) / names[i] for i in new], classes, missing_allowed) if new else []
            for i, answer in zip(new, found):
                if file:
                    keep_answer(file, about, names[i], answer)
                given[names[i]] = answer
            given.update({names[i]: kept[names[i]] for i in part if names[i] in kept})
            asked += part
            bar.update(len(part))
            if flags.sequential and case.sequence(so_far(), asked)["decision"] != "undecided":
                break
    answers = so_far()
    if (answers.labels < 0).all():
        raise Refusal(f"--{suspect.kind} {suspect.value} answered none of the {len(asked)} triggers that it was asked")
    if not flags.sequential:
        require_complete(f"--{suspect.kind}", answers, names, missing_allowed)
    return answers, asked, f"{len(kept)} of {len(names)} answers are those that {file} held" if kept else None


def decide_sequentially(report: dict, queries: int) -> None:
    """Change `report` in place: the answers decided on the number of queries, which only the sequential test allows."""
    why = "the answers decided when to stop asking; only the sequential test allows for that"
    report["tests"] = {name: {"log10_p": None, "why_not": test["why_not"] or why}
                       for name, test in report["tests"].items()}
    report["curve"] = None
    # without a p-value the claim was refused before any test, and stopping early does not change that
    if "log10_p" in report["decision"] and report["sequential"]["decision"] != "does not apply":
        report["decision"] = {"holds": report["sequential"]["decision"] == "claim", "rests_on": "SPRT",
                              "why": f"Wald's test, which may stop at any time, ended after {queries} queries"}


def holm(log10_p: list[float]) -> list[float]:
    """Holm's adjusted p-values as log10: the i-th smallest of n times n - i + 1, made monotone, at most 1."""
    n, worst = len(log10_p), -math.inf
    adjusted = [0.0] * n
    for rank, i in enumerate(sorted(range(n), key=lambda i: log10_p[i])):
        worst = max(worst, min(0.0, log10_p[i] + math.log10(n - rank)))
        adjusted[i] = worst
    return adjusted


def decide_together(reports: list[dict], alpha: float) -> None:
    """Put Holm's correction into the decisions, in place; a claim without a p-value counts as p = 1, and is refused."""
    adjusted = holm([report["decision"].get("log10_p", 0.0) for report in reports])
    for report, p in zip(reports, adjusted):
        decision = report["decision"]
        if "log10_p" in decision:
            decision |= {"holm_log10_p": p, "holds": bool(decision["holds"] and p <= math.log10(alpha))}


# ---- words ----


def _head(owner: Owner, stamp: Stamp | None, doubled: int) -> list[str]:
    """What does not depend on the suspect: commitment, beacon, date, and benign models that are one."""
    record = owner.record
    if record is None:
        lines = ["commitment   none: that the labels were drawn is the owner's word"]
    else:
        lines = [f"commitment   SHA-256 {record['sha256']}: {len(owner.triggers)} images, {len(owner.classes)} classes",
                 f"labels       drawn by {describe_beacon(record)} = {record['beacon']}"]
    if stamp and stamp.time is not None:
        lines.append(f"date         time-stamped {utc(stamp.time)} by an authority of the given certificates")
    if doubled:
        lines.append(f"bank         {doubled} of the --benign models are another one again, and do not count")
    return lines


def claim_sentence(report: dict) -> str:
    """The decision of a report (see `OwnershipCase.report`) in one sentence."""
    d, share = report["decision"], f"{report['hits']} of {report['triggers']} triggers"
    label = "assigned label" if report["plausible"] else "assigned wrong label"
    if d["rests_on"] == "SPRT":
        s = report["sequential"]
        if d["holds"]:
            return (f"The claim holds: after {s['queries']} queries a copy's hit rate explains the answers "
                    f"10^{s['log10_likelihood_ratio']:.1f} times as well as an independent model's.")
        return f"The claim does not hold: the sequential test said {s['decision']!r} after {s['queries']} queries."
    if "log10_p" not in d:
        return f"The claim does not hold: {d['why']}."
    p = f"10^{d['log10_p']:.1f}" if d["log10_p"] < -2 else f"{10 ** d['log10_p']:.2g}"
    holds, side = ("holds", "below") if d["holds"] else ("does not hold", "above")
    return (f"The claim {holds}: the suspect gave the {label} for {share}, and an independent model would do so with "
            f"probability {p} at most ({d['rests_on']}), {side} {report['alpha']:g}.")


def claim_lines(report: dict) -> list[str]:
    """The report of one suspect in lines: hits, tests, sequential test, decision, sentence."""
    s, d, lines = report["sequential"], report["decision"], []
    lines.append(f"hits         {report['hits']} of {report['triggers']}, {report['answered']} answered")
    lines += [f"hint         {report['hint']}"] if report["hint"] else []
    lines += [f"{'':<13}{report['kept']}"] if report["kept"] else []
    for name, test in report["tests"].items():
        value = f"log10 p = {test['log10_p']:.2f}" if test["why_not"] is None else f"does not apply: {test['why_not']}"
        lines.append(f"{name:<13}{value}" + (f" ({TITLES[name]})" if test["why_not"] is None else ""))
    if s["decision"] == "does not apply":
        lines.append("sequential   does not apply")
    else:
        lines.append(f"sequential   {s['decision']} after {s['queries']} queries; H0 {s['H0']}, H1 {s['H1']}, "
                     f"errors {s['alpha']:g} and {BETA:g}")
    if report["curve"]:
        half, most = (report["curve"][key] or "more than all" for key in ("sufficed_half", "sufficed_95"))
        lines.append(f"queries      {half} suffice in half of all random orders, {most} in 95 % of them")
    if d["rests_on"]:
        lines.append(f"decision     for {report['decided_for']}, rests on {d['rests_on']} at alpha = "
                     f"{report['alpha']:g}: {d['why']}")
    lines += [f"again        {AGAIN}"] if report["live"] else []
    return [*lines, report.get("sentence", "")]


def suspects_table(suspects: list[Suspect], reports: list[dict], alpha: float) -> str:
    """A line for each suspect, why claims were refused without a p-value, and the decision in one sentence."""
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
    lines += [f"hint, {s.value}: {r['hint']}" for s, r in zip(suspects, reports) if r["hint"]]
    lines += [AGAIN] if any(report["live"] for report in reports) else []
    held = sum(report["decision"]["holds"] for report in reports)
    return "\n".join([*lines, f"The claim holds against {held} of {len(reports)} suspects; the probability that any of "
                      f"them is claimed falsely is {alpha:g} at most (Holm)."])


def draw_claim_plot(report: dict) -> bytes:
    """A PNG of the median and the 90 % band of log10 p in random orders, of a report with a curve."""
    curve = report["curve"]
    figure, (ax,) = new_figure(6.4, 4, 1, 1)
    ax.fill_between(curve["queries"], curve["low"], curve["high"], alpha=0.25, lw=0, label="90 % of random orders")
    ax.plot(curve["queries"], curve["median"], label="median")
    ax.axhline(report["limit"], color="black", ls="--", lw=1, label=f"claimed below 10^{report['limit']:.1f}")
    if report["sequential"]["decision"] == "claim":
        ax.axvline(report["sequential"]["queries"], color="tab:red", lw=1, label="sequential test stops")
    ax.set(xlabel="queries", ylabel=f"log10 p of {curve['test']}", xlim=(0, report["triggers"]))
    ax.set_title(f"{report['hits']} of {report['triggers']} triggers hit", fontsize=10)
    ax.legend(fontsize=8)
    return figure_png(figure)
