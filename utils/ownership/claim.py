"""`python -m utils.verify claim RUN`: judge a suspect's answers to the triggers of a run."""

import argparse
import math
import re
import time
from pathlib import Path

import numpy as np

from utils.answers import ask
from utils.answers.answers import Answers, Classes, answers_from_file, read_lines
from utils.ownership.commitment import Owner, read_owner
from utils.ownership.timestamp import CLOCK_ERROR, Stamp, check_token
from utils.ownership.verdict import BETA, EXACT, OwnershipCase
from utils.runs.networks import add_named_architectures
from utils.system.files import write_json
from utils.system.refusals import Refusal, number, printable
from utils.watermark.prepared import ALPHA, NAMED, checked_beacon, describe_beacon, round_time, utc

KINDS = ("predictions", "suspect", "command", "url")  # a file of answers, weights, a program, a server
LIVE = ("command", "url")  # kinds of suspects that see the triggers when they are asked
MOST_SUSPECTS = 1000
ASKED_AGAIN = "p does not allow for asking a random suspect again; of one suspect, --keep-answers keeps the answers"
CHOSEN = ("p holds if --columns, --mean, --std and --scale are what the suspect says of itself: who chooses them after "
          "its answers can claim anybody")
EXPORTED = ("p holds if the images that were answered are those that you exported from RUN yourself: in a folder of "
            "the owner's they may show what he wants to be answered")
TITLES = {"T1": "label randomisation", "T1p": "score randomisation", "T2": "benign rate", "T3": "paired t",
          "T4": "rank among benign"}


def add_claim(parts) -> None:
    c = parts.add_parser("claim", help="judge a suspect's answers to the exported triggers")
    c.set_defaults(call=judge_claim)
    c.add_argument("run", metavar="RUN", help="a folder of train.py, or a checkpoint that holds triggers")
    kinds = c.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--predictions", metavar="FILE", help=".csv (name,label or name,probabilities) or .npy")
    kinds.add_argument("--suspect", metavar="RUN", help="a run, a checkpoint, a .onnx, or plain weights, with -mt")
    kinds.add_argument("--command", metavar="'CMD {png}'", help="prints a label; with {pngs} for many, a line each")
    kinds.add_argument("--url", help="a server that gets each image by POST, as PNG, and answers in text or JSON")
    kinds.add_argument("--suspects", metavar="LIST", help="a file, a suspect a line, as `url http://...`; its lines "
                       "can start programs, so write it yourself; alpha is corrected for their number (Holm)")
    j = c.add_argument_group("who judges")
    j.add_argument("--trust-owner", action="store_true", help="decide for the owner: T1 and T1p on his word, or T2")
    j.add_argument("--beacon", type=checked_beacon, metavar="HEX", help="the beacon's value, as you read it yourself")
    j.add_argument("--image-commitment", type=sha256_digest, metavar="SHA256",
                   help="the digest that `prepare` printed, as you saw it published before the beacon's value was")
    j.add_argument("--image-timestamp", type=Path, metavar="FILE", help="or the token of `timestamp`; with --tsa-ca")
    j.add_argument("--tsa-ca", metavar="FILE", help="certificates (PEM) of the authority that signed it")
    j.add_argument("--alpha", type=number(float, 1e-300, 1 - 1e-9), default=ALPHA,
                   help="largest probability of a false claim (default: 0.001)")
    j.add_argument("--test", choices=EXACT, default="both", help="the exact test that decides: T1 of answers, T1p of "
                   "probabilities, or the smaller p, doubled (default; T1 where there are labels alone)")
    j.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="the bank: models that know no watermark")
    a = c.add_argument_group("how suspects are asked")
    add_named_architectures(a, "a --suspect that is a plain state dict")
    a.add_argument("--columns", metavar="FILE", help="the suspect's class names in its own order, one a line, as "
                   "it says them itself, not as the owner does")
    for name, low, about in (("--mean", -1e6, "subtracted"), ("--std", 1e-6, "divided by")):
        a.add_argument(name, nargs="+", type=number(float, low, 1e6), metavar="X",
                       help=f"an ONNX file or plain weights: numbers {about} after --scale (1 or 3)")
    a.add_argument("--scale", type=number(float, 1e-6, 1e6), metavar="X", help="the same: pixels times X (default: 1)")
    a.add_argument("--allow-missing", action="store_true", help="count triggers without an answer as misses")
    a.add_argument("--leave-out-missing", action="store_true",
                   help="leave them out instead: exact if it was the suspect who refused, as you saw yourself")
    a.add_argument("--timeout", type=number(float, 1e-3, 1e4), default=60.0, help="for an answer, in s (default: 60)")
    a.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="--url: sent with each image")
    a.add_argument("--rate", type=number(float, 1e-4, 1e4), default=10.0, help="--url: images a second (default: 10)")
    a.add_argument("--retries", type=number(int, 0, 100), default=3, help="--url: after passing failures (default: 3)")
    a.add_argument("--keep-answers", type=Path, metavar="FILE", help="keep answers there, ask for none of them again")
    a.add_argument("--sequential", action="store_true", help="--command, --url: stop when Wald's test has decided")
    c.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def sha256_digest(text):
    """An argparse type: a SHA-256 digest in hexadecimal."""
    if not re.fullmatch("[0-9a-f]{64}", text.strip().lower()):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no SHA-256 in hexadecimal")
    return text.strip().lower()


def read_suspects(flags) -> list[tuple[str, str]]:
    """Who is asked, (kind of `KINDS`, value of its flag) each; Refusal where that does not go with the other flags.

    The file of --suspects has a line each, KIND VALUE, as `suspect experiments/a` or `predictions answers.csv`; empty
    lines and lines from # on are left out.
    """
    kind = next(kind for kind in (*KINDS, "suspects") if getattr(flags, kind) is not None)
    value = getattr(flags, kind)
    if not value.strip():
        raise Refusal(f"--{kind} is empty: say who is asked, as python -m utils.verify claim --help lists it")
    if (flags.sequential or flags.keep_answers) and kind not in LIVE:
        raise Refusal(f"--{'sequential' if flags.sequential else 'keep-answers'} is for one suspect that is asked "
                      "image by image: it needs --command or --url")
    if flags.sequential and kind == "command" and "{pngs}" in value:
        raise Refusal("--sequential stops after any image: it needs {png}, one image a call, instead of {pngs}")
    if flags.test == "T1p" and flags.sequential:
        raise Refusal("--sequential counts labels alone, as T1 does: leave out --test T1p")
    if kind not in ("suspect", "suspects") and ask.check_pixels(flags.mean, flags.std, flags.scale):
        raise Refusal(f"--mean, --std and --scale are for a --suspect, an ONNX file or plain weights: --{kind} has the "
                      "images as they are; leave them out")
    if flags.header and kind != "url":
        raise Refusal("--header is sent to one server: it needs --url")
    if bool(flags.tsa_ca) != bool(flags.image_timestamp):
        raise Refusal("--image-timestamp and --tsa-ca go together: a token, and the certificates that it leads to")
    if kind != "suspects":
        return [(kind, value)]
    lines = [(place, line) for place, line in enumerate(read_lines(value, "--suspects"), 1) if line and line[0] != "#"]
    if not 0 < len(lines) <= MOST_SUSPECTS:
        raise Refusal(f"--suspects {value} names {len(lines)} suspects; 1 to {MOST_SUSPECTS} can be judged")
    suspects = []
    for place, line in lines:
        kind, _, name = line.partition(" ")
        if kind not in KINDS or not name.strip() or (kind, name.strip()) in suspects:
            raise Refusal(f"--suspects {value}, line {place}: {line[:60]!r} is there twice, or is not one of "
                          f"{', '.join(KINDS)} and what that flag takes")
        suspects.append((kind, name.strip()))
    return suspects


def find_doubts(record: dict | None, *, stranger: bool, beacon=None, image_commitment=None, stamp=None) -> list[str]:
    """What keeps a claim from holding before anybody is asked, sentences that name the flag which would help.

    A stranger needs the beacon as he read it and one of the others; for the owner only what is given has to be right.
    `record` opens the owner's commitment; None of a run without one.
    """
    if record is None:
        if not (stranger or beacon or image_commitment or stamp):
            return []
        return ["nobody but the owner can say that he did not choose the labels: they are not of a commitment by "
                "`prepare` and a beacon; --trust-owner takes his word"]
    known, name, doubts = round_time(record), describe_beacon(record), []
    if beacon and beacon != record["beacon"]:
        doubts.append(f"the labels were drawn by {record['beacon'][:16]}..., which is not the value of --beacon")
    if stranger and not beacon:
        doubts.append(f"only the owner says what value the beacon had: read it yourself ({name}) and pass --beacon")
    if known and len(record["beacon"]) != 64:
        doubts.append(f"the value that drew the labels has not the 32 bytes of {name}")
    if known and known > time.time():
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
    elif stamp and stamp.time + CLOCK_ERROR > known:
        doubts.append(f"the --image-timestamp is of {utc(stamp.time)}, not {CLOCK_ERROR} s or more before the beacon's "
                      "value was known: an authority's clock may be late")
    if stranger and not (image_commitment or stamp):
        doubts.append("nothing shows that the images were fixed before the beacon: pass --image-commitment as "
                      "published, or --image-timestamp with --tsa-ca")
    return doubts


def bank_answers(flags, owner: Owner) -> list[Answers]:
    """The answers of benign models, each once however often it is named."""
    bank = []
    for run in flags.benign:
        answers = ask.answers_of_weights(run, flags.model_type, owner.triggers.images, Classes(owner.classes),
                                         owner.mean_std, flag="--benign")
        if not any(_same_model(answers, other) for other in bank):
            bank.append(answers)
    return bank


def _same_model(one: Answers, other: Answers) -> bool:
    """Whether answers are of the same weights: two trainings never give equal probabilities."""
    return one.probabilities is not None and bool(np.abs(one.probabilities - other.probabilities).max() < 1e-5)


def judge_claim(flags) -> int:
    """Print the tests, the decision and its sentence; write --json. 0 where a claim holds, else 1.

    Nobody is asked where no answers could make the claim hold.
    """
    suspects, owner, stranger = read_suspects(flags), read_owner(flags.run), not flags.trust_owner
    if flags.sequential and len(owner.triggers.groups):
        raise Refusal(f"--sequential counts triggers one by one, and those of {flags.run} share draws: leave it out")
    classes = Classes(owner.classes, read_lines(flags.columns, "--columns") if flags.columns else None)
    commitment = {name: (owner.record or {}).get(name) for name in ("sha256", "beacon_name", "round", "beacon")}
    stamp = check_token(flags.image_timestamp, commitment["sha256"], flags.tsa_ca) if flags.image_timestamp else None
    doubts = find_doubts(owner.record, stranger=stranger, beacon=flags.beacon, image_commitment=flags.image_commitment,
                         stamp=stamp)
    ways = {"command": lambda value: ask.program(value, flags.timeout),
            "url": lambda value: ask.server(value, flags.header, flags.timeout, flags.rate, flags.retries)}
    respondents = {(kind, value): ways[kind](value) for kind, value in suspects if kind in LIVE}
    pixels, bank = ask.check_pixels(flags.mean, flags.std, flags.scale), bank_answers(flags, owner)
    case = OwnershipCase(owner, bank, flags.alpha, stranger=stranger, doubts=doubts, exact=flags.test,
                         count_missing=not flags.leave_out_missing)
    lines = _head(owner, stamp, len(flags.benign) - len(bank))
    if more := [name for name, place in classes.places.items() if place < 0]:
        lines.append(f"columns      {len(more)} classes that the owner lacks are left out, as {more[0][:60]!r}")
    if case.refused:
        report = {"decision": {"holds": False, "rests_on": None, "why": case.refused}}
        reports = [report]
        lines.append(f"The claim does not hold, and nobody was asked: {case.refused}.")
    else:
        judge = lambda kind, value: _judge(case, owner, kind, value, respondents.get((kind, value)), classes, pixels,
                                           flags)
        reports = _judge_all(suspects, judge)
        if flags.suspects is None:
            (kind, value), report = suspects[0], reports[0]
            lines += [f"suspect      {kind} {value}", *claim_lines(report)]
            report = {"kind": kind, "suspect": value} | report
        else:
            decide_together(reports, flags.alpha)
            report = {"suspects": [{"kind": kind, "suspect": value} | report
                                   for (kind, value), report in zip(suspects, reports)]}
            lines += list_lines(report["suspects"], flags.alpha)
        lines += [NAMED] * bool(stranger and round_time(owner.record) is None)
        lines += [EXPORTED] * (stranger and any(kind == "predictions" for kind, _ in suspects))
        lines += [ASKED_AGAIN] * bool(respondents and not flags.keep_answers) + [CHOSEN] * bool(flags.columns or pixels)
    print(printable("\n".join(lines)))
    if flags.json:
        write_json(flags.json, {"run": str(flags.run), "judged": utc(time.time()), "commitment": commitment,
                                "stamp": stamp and stamp._asdict()} | report, private=True)
    return 0 if any(report["decision"]["holds"] for report in reports) else 1


def _judge_all(suspects: list[tuple[str, str]], judge) -> list[dict]:
    """The reports of `judge(kind, value)`. Of several suspects one that fails while it is asked loses no other's.

    Files come first, so that what is wrong with one of them is said before anybody is asked. Raises the last Refusal
    where nothing became known of anybody.
    """
    reports, failed = {}, 0
    for suspect in sorted(suspects, key=lambda suspect: suspect[0] in LIVE):
        try:
            reports[suspect] = judge(*suspect)
        except Refusal as refusal:
            failed += 1
            if failed == len(suspects) or suspect[0] not in LIVE:
                raise
            why = f"nothing is known of it ({refusal})"
            reports[suspect] = {"decision": {"holds": False, "rests_on": None, "why": why}, "hint": None}
    return [reports[suspect] for suspect in suspects]


def _judge(case: OwnershipCase, owner: Owner, kind: str, value: str, respondent, classes: Classes, pixels, flags):
    """The report on one suspect, see `OwnershipCase.report`, with "kept", how many answers were kept before, and
    "failure", why an image was not answered, of the first such one.
    """
    images, names, order, kept = owner.triggers.images, owner.names, None, 0
    allow_missing = flags.allow_missing or flags.leave_out_missing
    if respondent:
        decided = lambda answers, asked: case.sequence(answers, asked)["decision"] != "undecided"
        with ask.open_kept(flags.keep_answers) as file:
            answers, order, kept = ask.ask_all(respondent, images, names, classes, allow_missing, file,
                                               decided if flags.sequential else None)
    elif kind == "predictions":
        answers = answers_from_file(value, names, classes, allow_missing)
    elif value.lower().endswith(".onnx"):
        answers = ask.answers_of_onnx(Path(value), images, classes, pixels, allow_missing)
    else:
        answers = ask.answers_of_weights(value, flags.model_type, images, classes, owner.mean_std, pixels,
                                         allow_missing=allow_missing)
    if any(_same_model(answers, other) for other in case.bank):
        raise Refusal(f"--benign names {value}, the suspect itself, which cannot be in its bank: leave it out")
    report = case.report(answers, np.argsort(names) if order is None else order, flags.sequential)
    return report | {"kept": kept, "failure": next(iter(respondent.failures), None) if respondent else None}


def decide_together(reports: list[dict], alpha: float) -> None:
    """Put Holm's correction into the decisions, in place: the i-th smallest p of n times n - i + 1, made monotone.

    A claim without a p-value counts as p = 1, and is refused.
    """
    log10_p = np.array([report["decision"].get("log10_p", 0.0) for report in reports])
    order, times = np.argsort(log10_p), np.log10(np.arange(len(log10_p), 0, -1))
    adjusted = np.minimum(0, np.maximum.accumulate(log10_p[order] + times))
    for i, p in zip(order, adjusted.tolist()):
        if "log10_p" in (decision := reports[i]["decision"]):
            decision |= {"holm_log10_p": p, "holds": bool(decision["holds"] and p <= math.log10(alpha))}


def _head(owner: Owner, stamp: Stamp | None, doubled: int) -> list[str]:
    """What does not depend on the suspect: commitment, beacon, date, and benign models that are one."""
    record, lines = owner.record, ["commitment   none: that the labels were drawn is the owner's word"]
    if record:
        lines = [f"commitment   SHA-256 {record['sha256']}: {len(owner.triggers)} images, {len(owner.classes)} classes",
                 f"labels       drawn by {describe_beacon(record)} = {record['beacon']}"]
    if stamp and stamp.time is not None:
        lines.append(f"date         time-stamped {utc(stamp.time)} by an authority of the given certificates")
    if doubled:
        lines.append(f"bank         {doubled} of the --benign models are another one again, and do not count")
    return lines


def claim_sentence(report: dict) -> str:
    """The decision of a report (see `OwnershipCase.report`) in one sentence."""
    d = report["decision"]
    if d["rests_on"] == "SPRT" and d["holds"]:
        s = report["sequential"]
        return (f"The claim holds: after {s['queries']} queries a copy's hit rate explains the answers "
                f"10^{s['log10_likelihood_ratio']:.1f} times as well as H0, {s['H0']}.")
    if "log10_p" not in d:
        return f"The claim does not hold: {d['why']}."
    log10_p, test = d.get("holm_log10_p", d["log10_p"]), d["rests_on"] + (", Holm" if "holm_log10_p" in d else "")
    p = f"10^{log10_p:.2f}" if log10_p < -2 else f"{10**log10_p:.2g}"
    label = "assigned label" if report["plausible"] else "assigned wrong label"
    holds, side = ("holds", "below") if d["holds"] else ("does not hold", "above")
    tells = not report["shared_draws"] and "T1p" not in test  # whether the number of hits is what p is about
    agree = "do so" if tells else "agree with the draw as this one does"
    share = f"{report['hits']} of {report['triggers']} triggers"
    model = "a model that hits each as often as the benign ones" if "T2" in test else "an independent model"
    return (f"The claim {holds}: the suspect gave the {label} for {share}, and {model} would {agree} with "
            f"probability {p} at most ({test}), {side} {report['alpha']:g}.")


def claim_lines(report: dict) -> list[str]:
    """The report of one suspect in lines: hits, tests, sequential test, decision, sentence."""
    s, d = report["sequential"], report["decision"]
    lines = [f"hits         {report['hits']} of {report['triggers']}, {report['answered']} answered"]
    lines += [f"hint         {report['hint']}"] if report["hint"] else []
    if report["kept"]:
        lines.append(f"kept         {report['kept']} of {report['triggers']} answers are those that were kept before")
    if report["failure"]:
        lines.append(f"missing      the first: {report['failure']}")
    for name, test in report["tests"].items():
        lines.append(f"{name:<13}" + (f"does not apply: {test['why_not']}" if test["why_not"] else
                                      f"log10 p = {test['log10_p']:.2f} ({TITLES[name]})"))
    if d["rests_on"] == "SPRT":
        lines.append(f"sequential   {s['decision']} after {s['queries']} queries; H0 {s['H0']}, H1 {s['H1']}, "
                     f"errors {s['alpha']:g} and {BETA:g}")
    lines.append(f"decision     for {report['decided_for']}, rests on {d['rests_on']} at alpha = {report['alpha']:g}: "
                 f"{d['why']}")
    return [*lines, claim_sentence(report)]


def list_lines(reports: list[dict], alpha: float) -> list[str]:
    """The sentence, the hint and the first failure of each suspect, and how many claims hold."""
    lines, held = [], sum(report["decision"]["holds"] for report in reports)
    for report in reports:
        lines.append(f"{report['kind']} {report['suspect']}: {claim_sentence(report)}")
        lines += [f"hint: {report['hint']}"] if report["hint"] else []
        lines += [f"missing, the first: {report['failure']}"] if report.get("failure") else []
    return [*lines, f"The claim holds against {held} of {len(reports)} suspects; the probability that any of them is "
            f"claimed falsely is {alpha:g} at most (Holm), as far as each p holds."]
