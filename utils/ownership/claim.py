"""`python -m utils.verify claim RUN`: judge a suspect's answers to the triggers of a run.

Exit status: 0 the claim holds, 1 it does not hold, 2 an error.
"""

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.ownership.answer_files import answers_from_file
from utils.ownership.answers import Answers, answers_of_model, require_complete
from utils.ownership.ask_program import ask_program
from utils.ownership.auditor import audit_triggers, read_auditor
from utils.ownership.claim_plot import draw_claim_plot
from utils.ownership.claim_text import claim_sentence, claim_text
from utils.ownership.commitment import check_commitment, neutral_names
from utils.ownership.export import read_owner, write_pictures
from utils.ownership.label_origin import label_origin
from utils.ownership.verdict import OwnershipCase
from utils.runs.checkpoints import find_checkpoint, read_benign, read_model
from utils.system.files import check_output_file, sha256_of_file, write_atomically, write_json
from utils.system.refusals import Refusal
from utils.watermark.prepared import checked_beacon


@dataclass(frozen=True)
class ClaimCommand:
    """The flags of `utils.verify claim`. Exactly one of `predictions`, `suspect` and `command` is set."""

    run: str
    predictions: str | None
    suspect: str | None
    command: str | None
    sequential: bool
    benign: list
    alpha: float
    allow_missing: bool
    commitment: str | None
    image_commitment: str | None
    beacon: str | None
    trust_owner: bool
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
    kinds.add_argument("--suspect", metavar="RUN", help="a checkpoint file or a run folder")
    kinds.add_argument("--command", metavar="'CMD {png}'", help="a program that prints the label of one image")
    c.add_argument("--sequential", action="store_true", help="--command: stop asking when Wald's test has decided")
    c.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="the bank: models that know no watermark")
    c.add_argument("--alpha", type=alpha_level, default=1e-3,
                   help="largest probability of a false claim (default: 0.001)")
    c.add_argument("--allow-missing", action="store_true", help="count triggers without an answer as misses")
    c.add_argument("--commitment", type=sha256_digest, metavar="SHA256", help="the digest as it was published")
    c.add_argument("--image-commitment", type=sha256_digest, metavar="SHA256",
                   help="the digest that `prepare` printed, as it was published")
    c.add_argument("--beacon", type=checked_beacon, metavar="HEX", help="the beacon's value, as you read it yourself")
    c.add_argument("--auditor", metavar="DIR",
                   help="check images and true labels against your own copy of the data set, in DIR/data, and add your "
                   "own benign models, runs in DIR, to the bank")
    c.add_argument("--trust-owner", action="store_true",
                   help="decide as for the owner himself: plain T1, or T2 where T1 does not apply")
    c.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    c.add_argument("--plot", type=Path, metavar="FILE.png", help="p-value against the number of queries")


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
    """Print the tests, the decision and its sentence; write --json and --plot. 0 where the claim holds, else 1."""
    if claim.sequential and not claim.command:
        raise Refusal("--sequential stops asking early: it needs --command")
    check_output_file(claim.json, "--json")
    check_output_file(claim.plot, "--plot")
    folder, triggers, classes = read_owner(claim.run)
    names = neutral_names(triggers, folder)
    suspect = find_checkpoint(claim.suspect, None) if claim.suspect else None
    case = _owners_case(claim, folder, triggers, classes, suspect)

    order = np.argsort(names).tolist()  # alphabetical by name, which is a random order of the triggers
    if claim.command:
        answers, order = _ask_suspect(claim.command, claim.sequential, claim.allow_missing, case, triggers, names,
                                      classes, order)
    elif suspect:
        answers = answers_of_model(read_model(suspect), suspect, triggers, len(classes))
    else:
        answers = answers_from_file(claim.predictions, names, classes, claim.allow_missing)

    report = case.report(answers)
    report["sequential"], report["curve"] = case.sequence(answers, order), case.curve(answers)
    if claim.sequential:
        _decide_sequentially(report, len(order))
    report["sentence"] = claim_sentence(report)
    print(claim_text(report))
    if claim.json:
        write_json(claim.json, report, private=True)
    if claim.plot and report["curve"] is None:
        print(f"no plot {claim.plot}: there is no p-value to draw, for no test of a fixed number of queries applies")
    elif claim.plot:
        write_atomically(claim.plot, draw_claim_plot(report))
    return 0 if report["decision"]["holds"] else 1


def _owners_case(claim: ClaimCommand, folder, triggers, classes, suspect) -> OwnershipCase:
    """The case before any answer is known: commitment, origin of the labels, the auditor's findings, the bank."""
    commitment = check_commitment(folder, triggers, claim.commitment)
    origin = label_origin(triggers, len(classes), commitment, claim.beacon, claim.image_commitment)
    runs, audit = list(claim.benign), None
    if claim.auditor:
        auditor = read_auditor(claim.auditor, commitment.settings)
        audit = audit_triggers(triggers, len(classes), commitment.settings, origin.kind == "seed", auditor)
        runs += auditor.bank
    bank = [_benign_answers(run, triggers, classes, suspect) for run in runs]
    return OwnershipCase(triggers, len(classes), commitment, bank, claim.alpha, not claim.trust_owner, audit, origin)


def _benign_answers(run, triggers, classes, suspect) -> Answers:
    path = find_checkpoint(run, None)
    if suspect and sha256_of_file(path) == sha256_of_file(suspect):
        raise Refusal(f"{run} is the suspect itself, which cannot be in its bank: leave it out of --benign, or "
                      "out of --auditor's folder")
    return answers_of_model(read_benign(run), path, triggers, len(classes))


def _ask_suspect(command, sequential: bool, allow_missing: bool, case, triggers, names, classes, order):
    """(answers, positions in the order asked): ask the program one image after the other, in `order`.

    With `sequential` it stops when the sequential test has decided.
    """
    labels, asked = np.full(len(names), -1, dtype=np.int64), []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(triggers, names, Path(folder))
        for i in order:
            labels[i] = ask_program(command, Path(folder) / names[i], classes, allow_missing)
            asked.append(i)
            if sequential and case.sequence(Answers(labels, None), asked)["decision"] != "undecided":
                break
    if (labels < 0).all():
        raise Refusal(f"--command {command} answered none of the {len(asked)} triggers that it was asked")
    answers = Answers(labels, None)
    return (answers if sequential else require_complete("--command", answers, names, allow_missing)), asked


def _decide_sequentially(report: dict, queries: int) -> None:
    """Change `report` in place for a number of queries that depended on the answers.

    The tests assume a fixed number of queries, so they no longer apply, and the decision is the sequential test's.
    """
    why = "the answers decided when to stop asking; only the sequential test allows for that"
    report["tests"] = {name: {"log10_p": None, "why_not": test["why_not"] or why}
                       for name, test in report["tests"].items()}
    report["curve"] = None
    # without a p-value the claim was refused before any test, and stopping early does not change that
    if "log10_p" in report["decision"] and report["sequential"]["decision"] != "does not apply":
        report["decision"] = {"holds": report["sequential"]["decision"] == "claim", "rests_on": "SPRT",
                              "why": f"Wald's test, which may stop at any time, ended after {queries} queries"}
