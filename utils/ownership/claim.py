"""`python -m utils.verify claim RUN`: judge a suspect's answers to the triggers of a run.

Exit status: 0 the claim holds, 1 it does not hold, 2 an error.
"""

import argparse
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from utils.ownership.auditor import audit_triggers, read_auditor
from utils.ownership.claim_log import log_claims
from utils.ownership.claim_plot import draw_claim_plot
from utils.ownership.claim_text import claim_sentence, claim_text, head_lines
from utils.ownership.commitment import check_commitment
from utils.ownership.judging import Asking, Suspect, bank_answers, judge
from utils.ownership.label_origin import label_origin
from utils.ownership.owner import Owner, read_owner
from utils.ownership.suspect_list import KINDS, decide_together, read_suspects, suspects_table
from utils.ownership.timestamp_token import TOKEN_FILE, check_token
from utils.ownership.verdict import EXACT, OwnershipCase
from utils.runs.networks import add_named_architectures
from utils.system.files import check_output_file, write_atomically, write_json
from utils.system.refusals import Refusal, number, printable
from utils.watermark.prepared import checked_beacon

LIVE = ("command", "url")  # kinds of suspects that see the triggers when they are asked


@dataclass(frozen=True)
class ClaimCommand:
    """The flags of `utils.verify claim`. One of `predictions`, `suspect`, `command`, `url` and `suspects` is set."""

    run: str
    predictions: str | None
    suspect: str | None
    command: str | None
    url: str | None
    suspects: str | None
    sequential: bool
    model_type: list
    timeout: float
    header: list
    rate: float
    retries: int
    benign: list
    alpha: float
    allow_missing: bool
    leave_out_missing: bool
    commitment: str | None
    image_commitment: str | None
    beacon: str | None
    tsa_ca: str | None
    image_timestamp: Path | None
    trust_owner: bool
    test: str
    auditor: str | None
    json: Path | None
    plot: Path | None


def add_claim(parts) -> None:
    """Declare the command `claim` and its flags; `parts` are the subparsers of utils.verify."""
    c = parts.add_parser("claim", help="judge a suspect's answers to the exported triggers")
    c.set_defaults(call=judge_claim, command_type=ClaimCommand)
    c.add_argument("run", metavar="RUN", help="as for export")
    kinds = c.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--predictions", metavar="FILE", help=".csv (name,label or name,probabilities) or .npy")
    kinds.add_argument("--suspect", metavar="RUN", help="a run folder, a checkpoint, a model.onnx, or a "
                       "plain state dict, whose architecture -mt names")
    kinds.add_argument("--command", metavar="'CMD {png}'", help="a program that prints the label of one image, or with "
                       "{pngs} a line for each of many")
    kinds.add_argument("--url", help="a server that gets each image by POST, as PNG, and answers in text or JSON; the "
                       "same command goes on where it was interrupted")
    kinds.add_argument("--suspects", metavar="LIST",
                       help="a text file, a suspect a line, as 'suspect RUN'; decided together by Holm's correction")
    _add_asking_flags(c)
    c.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="the bank: models that know no watermark")
    c.add_argument("--alpha", type=alpha_level, default=1e-3,
                   help="largest probability of a false claim (default: 0.001)")
    c.add_argument("--test", choices=EXACT, default="both",
                   help="the exact test that decides, named before the suspect is asked: T1 counts answers, T1p weighs "
                   "probabilities; both doubles the smaller p, and is T1 alone where a suspect gives labels (default)")
    c.add_argument("--allow-missing", action="store_true", help="count triggers without an answer as misses")
    c.add_argument("--leave-out-missing", action="store_true",
                   help="leave them out of T1 instead: exact if it was the suspect who refused, as you saw yourself")
    c.add_argument("--commitment", type=sha256_digest, metavar="SHA256", help="the digest as it was published")
    c.add_argument("--image-commitment", type=sha256_digest, metavar="SHA256",
                   help="the digest that `prepare` printed, as it was published")
    c.add_argument("--beacon", type=checked_beacon, metavar="HEX", help="the beacon's value, as you read it yourself")
    c.add_argument("--tsa-ca", metavar="FILE", help="certificates (PEM) of the authority that stamped the commitment")
    c.add_argument("--image-timestamp", type=Path, metavar="FILE",
                   help="the token that `timestamp` wrote into the folder of `prepare`")
    c.add_argument("--auditor", metavar="DIR",
                   help="check images and true labels against your own copy of the data set, in DIR/data, and add your "
                   "own benign models, runs in DIR, to the bank")
    c.add_argument("--trust-owner", action="store_true",
                   help="decide as for the owner himself: plain T1, or T2 where T1 does not apply")
    c.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    c.add_argument("--plot", type=Path, metavar="FILE.png", help="p-value against the number of queries")


def _add_asking_flags(c: argparse.ArgumentParser) -> None:
    """How suspects are asked."""
    c.add_argument("--timeout", type=number(float, 0, 1e6, open_low=True), default=60.0, metavar="S",
                   help="--command, --url: seconds to wait for an answer (default: 60)")
    c.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'",
                   help="--url: send it with each image, as for a key; may be repeated")
    c.add_argument("--rate", type=number(float, 1e-4, 1e4), default=10.0, metavar="R",
                   help="--url: images a second at most (default: 10)")
    c.add_argument("--retries", type=number(int, 0, 100), default=3, metavar="N",
                   help="--url: ask again so often after a passing failure, later each time (default: 3)")
    add_named_architectures(c, "a --suspect that is a plain state dict")
    c.add_argument("--sequential", action="store_true", help="--command, --url: stop when Wald's test has decided")


def alpha_level(text):
    """An argparse type: a number in (0, 1)."""
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")


def sha256_digest(text):
    """An argparse type: a SHA-256 digest in hexadecimal."""
    if not re.fullmatch("[0-9a-f]{64}", text.strip().lower()):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no SHA-256 in hexadecimal")
    return text.strip().lower()


def judge_claim(claim: ClaimCommand) -> int:
    """Print the tests, the decision and its sentence; write --json and --plot. 0 where a claim holds, else 1."""
    kind, value = _who_is_asked(claim)
    if claim.sequential and kind not in LIVE:
        raise Refusal("--sequential stops asking early: it needs --command or --url, one suspect a claim")
    if claim.header and kind != "url":
        raise Refusal("--header is sent to one server: it needs --url; no server of --suspects gets another one's key")
    if kind == "suspects" and claim.plot:
        raise Refusal("--plot draws one suspect: leave it out, or name that one instead of --suspects")
    check_output_file(claim.json, "--json")
    check_output_file(claim.plot, "--plot")
    suspects = read_suspects(value) if kind == "suspects" else [Suspect(kind, value)]
    owner = read_owner(claim.run)
    case, stamps = _owners_case(claim, owner, suspects)
    asking = Asking(claim.allow_missing or claim.leave_out_missing, claim.sequential, claim.model_type, claim.timeout,
                    claim.header, claim.rate, claim.retries)
    for suspect in suspects:
        if suspect.kind in LIVE:
            asking.respondent(suspect)  # which refuses what cannot be asked, before anybody is
    reports = _judge_and_log(suspects, case, owner, asking)
    for report in reports:
        report["timestamps"] = stamps
    if kind == "suspects":
        return _report_many(claim, suspects, reports)
    report = reports[0]
    report["sentence"] = claim_sentence(report)
    print(printable(claim_text(report)))
    if claim.json:
        write_json(claim.json, report, private=True)
    if claim.plot and report["curve"] is None:
        print(f"no plot {claim.plot}: there is no p-value to draw, for no test of a fixed number of queries applies")
    elif claim.plot:
        write_atomically(claim.plot, draw_claim_plot(report))
    return 0 if report["decision"]["holds"] else 1


def _judge_and_log(suspects: list[Suspect], case: OwnershipCase, owner: Owner, asking: Asking) -> list[dict]:
    """A report for each suspect, with "asked", which says how many were asked before this claim.

    A program or a server is logged before it is asked, since it has seen triggers even if it fails; the others after
    all are judged, so that a mistyped file name is no try.
    """
    log = functools.partial(log_claims, owner.folder, case.commitment.digest)
    reports, said, rest = [], [], []
    for suspect in suspects:
        if suspect.kind in LIVE:
            said.append(log([suspect]))
        else:
            rest.append(suspect)
        reports.append(judge(case, owner, suspect, asking))
    if rest:
        said.append(log(rest))
    return [report | {"asked": said[0]} for report in reports]


def _report_many(claim: ClaimCommand, suspects: list[Suspect], reports: list[dict]) -> int:
    decide_together(reports, claim.alpha)
    print(printable(f"{head_lines(reports[0])}\n{suspects_table(suspects, reports, claim.alpha)}"))
    if claim.json:
        named = [{"kind": suspect.kind, "suspect": suspect.value} | report
                 for suspect, report in zip(suspects, reports)]
        write_json(claim.json, {"suspects": named}, private=True)
    return 0 if any(report["decision"]["holds"] for report in reports) else 1


def _who_is_asked(claim: ClaimCommand) -> tuple[str, str]:
    """The flag that says who is asked, and what it was given; Refusal where that is nothing."""
    kind = next(kind for kind in (*KINDS, "suspects") if getattr(claim, kind) is not None)
    value = getattr(claim, kind)
    if not value.strip():
        raise Refusal(f"--{kind} is empty: say who is asked, as python -m utils.verify claim --help lists it")
    return kind, value


def _owners_case(claim: ClaimCommand, owner: Owner, suspects: list[Suspect]) -> tuple[OwnershipCase, dict]:
    """The case before any answer is known, with commitment, origin of the labels, the auditor's findings and the bank;
    and the time-stamps {"commitment": Stamp, "images": Stamp or None}."""
    classes = len(owner.classes)
    commitment = check_commitment(owner.folder, owner.triggers, claim.commitment)
    origin = label_origin(owner.triggers, classes, commitment, claim.beacon, claim.image_commitment)
    if claim.image_timestamp and origin.kind != "beacon":
        raise Refusal(f"--image-timestamp: no beacon drew the labels of {claim.run}, so no images were committed to")
    stamps = {"commitment": check_token(owner.folder / TOKEN_FILE, commitment.digest or "", claim.tsa_ca)._asdict(),
              "images": None}
    if origin.kind == "beacon":
        token = claim.image_timestamp or owner.folder / "no token of the images"
        stamps["images"] = check_token(token, origin.image_commitment, claim.tsa_ca)._asdict()
    runs, audit = list(claim.benign), None
    if claim.auditor:
        auditor = read_auditor(claim.auditor, commitment.settings, owner.triggers.images.shape[-1])
        audit = audit_triggers(owner.triggers, classes, commitment.settings, origin.kind == "seed", auditor)
        runs += auditor.bank
    bank = bank_answers(runs, owner, suspects)
    case = OwnershipCase(owner.triggers, classes, commitment, bank, claim.alpha, not claim.trust_owner, audit, origin,
                         not claim.leave_out_missing, claim.test)
    return case, stamps
