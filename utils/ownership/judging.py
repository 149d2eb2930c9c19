"""Ask one suspect about the triggers of a run and judge its answers; `claim` does that for one suspect or for many."""

import hashlib
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.answers.answers import Answer, Answers, answers_of_model, gather_answers, require_complete
from utils.answers.files import answers_from_file
from utils.answers.half_asked import HalfAsked
from utils.answers.onnx_file import answers_of_onnx
from utils.answers.program import Program
from utils.answers.server import Server
from utils.answers.weights import read_suspect_model
from utils.ownership.export import write_pictures
from utils.ownership.owner import Owner
from utils.ownership.verdict import OwnershipCase
from utils.runs.checkpoints import find_checkpoint, read_benign
from utils.system.files import sha256_of_file
from utils.system.refusals import Refusal


class Suspect(NamedTuple):
    """Who is asked: kind "predictions" (a file), "suspect" (weights), "command" (a program) or "url" (a server)."""

    kind: str
    value: str

    def __str__(self):
        return f"--{self.kind} {self.value}"


class Asking(NamedTuple):
    """How suspects are asked.

    allow_missing  whether missing answers are misses
    sequential     whether asking stops when it is decided
    architectures  by -mt, for suspects that are plain state dicts
    seconds, headers, rate, retries  as for `Program` and `Server`
    """

    allow_missing: bool = False
    sequential: bool = False
    architectures: tuple = ()
    seconds: float = 60.0
    headers: tuple = ()
    rate: float = 10.0
    retries: int = 3

    def respondent(self, suspect: Suspect) -> Program | Server:
        """Whom to ask; Refusal where it cannot be asked in this way."""
        if suspect.kind == "url":
            server = Server(suspect.value, tuple(self.headers), self.seconds, self.rate, self.retries)
            server.check()
            return server
        program = Program(suspect.value, self.seconds)
        program.check()
        if self.sequential and program.images_per_call > 1:
            raise Refusal("--sequential stops after any image: it needs {png}, one image a call, instead of {pngs}")
        return program


def bank_answers(runs, owner: Owner, suspects: list[Suspect]) -> list[Answers]:
    """The answers of benign models; Refusal where one of them is a suspect itself."""
    files = {sha256_of_file(find_checkpoint(s.value, None)) for s in suspects if s.kind == "suspect"}
    bank = []
    for run in runs:
        path = find_checkpoint(run, None)
        if files and sha256_of_file(path) in files:
            raise Refusal(f"{run} is the suspect itself, which cannot be in its bank: leave it out of --benign, or "
                          "out of --auditor's folder")
        bank.append(answers_of_model(read_benign(run), path, owner.triggers.images, len(owner.classes)))
    return bank


def judge(case: OwnershipCase, owner: Owner, suspect: Suspect, asking: Asking) -> dict:
    """The report on one suspect, see `OwnershipCase.report`, with "sequential", "sequence" and "curve"."""
    order = np.argsort(owner.names).tolist()  # alphabetical by name, which is a random order of the triggers
    images, count, before = owner.triggers.images, len(owner.classes), None
    if suspect.kind in ("command", "url"):
        answers, order, before = _ask(case, owner, suspect, asking, order)
    elif suspect.kind == "suspect" and suspect.value.lower().endswith(".onnx"):
        answers = answers_of_onnx(Path(suspect.value), images, count)
    elif suspect.kind == "suspect":
        model = read_suspect_model(suspect.value, asking.architectures, count, images.shape[-1], owner.mean_std)
        answers = answers_of_model(model, find_checkpoint(suspect.value, None), images, count)
    else:
        answers = answers_from_file(suspect.value, owner.names, owner.classes, asking.allow_missing)
    report = case.report(answers)
    report["sequential"], report["curve"] = case.sequence(answers, order), case.curve(answers)
    report["before"] = before
    if asking.sequential:
        decide_sequentially(report, len(order))
    return report


def _ask(case, owner: Owner, suspect: Suspect, asking: Asking, order):
    """(answers, positions in the order asked, a sentence on answers from before an interruption or None).

    Programs and servers are asked image after image, in `order`, or many at once; with `asking.sequential` until the
    sequential test has decided. A server's answers are kept until all are there.
    """
    names, classes, respondent = owner.names, owner.classes, asking.respondent(suspect)
    half = HalfAsked(_half_asked_file(owner, suspect, case.commitment.digest), names, len(classes))
    given, asked, k = [Answer()] * len(names), [], respondent.images_per_call
    bar = tqdm(total=len(names), disable=None, unit="image", leave=False)
    with tempfile.TemporaryDirectory() as folder, bar:
        write_pictures(owner.triggers, names, Path(folder))
        for start in range(0, len(order), k):
            part = order[start : start + k]
            pngs = [Path(folder) / names[i] for i in part]
            known = [half.answers.get(png.name) for png in pngs]
            for i, answer in zip(part, known if all(known) else respondent.ask(pngs, classes, asking.allow_missing)):
                given[i] = answer
                asked.append(i)
                if names[i] not in half.answers:
                    half.add(names[i], answer)
            bar.update(len(part))
            answers = gather_answers(given, len(classes))
            if asking.sequential and case.sequence(answers, asked)["decision"] != "undecided":
                break
    if (answers.labels < 0).all():
        raise Refusal(f"{suspect} answered none of the {len(asked)} triggers that it was asked")
    if not asking.sequential:
        require_complete(f"--{suspect.kind}", answers, names, asking.allow_missing)
    half.remove()
    return answers, asked, half.sentence


def _half_asked_file(owner: Owner, suspect: Suspect, digest: str | None) -> Path | None:
    """The file of a server's answers so far; None for programs, and without a run folder."""
    if suspect.kind != "url" or not owner.folder.is_dir():
        return None
    about = hashlib.sha256(f"{suspect.value}\n{digest}\n{sorted(owner.names)}".encode()).hexdigest()
    return owner.folder / f".half_asked_{about[:16]}.jsonl"


def decide_sequentially(report: dict, queries: int) -> None:
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
