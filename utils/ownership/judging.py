"""Ask one suspect about the triggers of a run and judge its answers; `claim` does that for one suspect or for many."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.ownership.answer_files import answers_from_file
from utils.ownership.answers import Answers, answers_of_model, require_complete
from utils.ownership.ask_program import ask_program
from utils.ownership.commitment import neutral_names
from utils.ownership.export import read_owner, write_pictures
from utils.ownership.verdict import OwnershipCase
from utils.runs.checkpoints import find_checkpoint, read_benign, read_model
from utils.system.files import sha256_of_file
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet


class Owner(NamedTuple):
    """The owner's side: the run's folder, its triggers, the class names, and the neutral names of the triggers."""

    folder: Path
    triggers: TriggerSet
    classes: list
    names: list


class Suspect(NamedTuple):
    """Who is asked: kind "predictions" (a file), "suspect" (weights) or "command" (a program), and which."""

    kind: str
    value: str

    def __str__(self):
        return f"--{self.kind} {self.value}"


class Asking(NamedTuple):
    """How suspects are asked: whether missing answers are misses, and whether asking stops when it is decided."""

    allow_missing: bool = False
    sequential: bool = False


def open_owner(run) -> Owner:
    """The owner's side of a run, see `read_owner`."""
    folder, triggers, classes = read_owner(run)
    return Owner(folder, triggers, classes, neutral_names(triggers, folder))


def bank_answers(runs, owner: Owner, suspects: list[Suspect]) -> list[Answers]:
    """The answers of benign models; Refusal where one of them is a suspect itself."""
    files = {sha256_of_file(find_checkpoint(s.value, None)) for s in suspects if s.kind == "suspect"}
    bank = []
    for run in runs:
        path = find_checkpoint(run, None)
        if files and sha256_of_file(path) in files:
            raise Refusal(f"{run} is the suspect itself, which cannot be in its bank: leave it out of --benign, or "
                          "out of --auditor's folder")
        bank.append(answers_of_model(read_benign(run), path, owner.triggers, len(owner.classes)))
    return bank


def judge(case: OwnershipCase, owner: Owner, suspect: Suspect, asking: Asking) -> dict:
    """The report on one suspect, see `OwnershipCase.report`, with "sequential", "sequence" and "curve"."""
    order = np.argsort(owner.names).tolist()  # alphabetical by name, which is a random order of the triggers
    if suspect.kind == "command":
        answers, order = _ask(case, owner, suspect.value, asking, order)
    elif suspect.kind == "suspect":
        path = find_checkpoint(suspect.value, None)
        answers = answers_of_model(read_model(path), path, owner.triggers, len(owner.classes))
    else:
        answers = answers_from_file(suspect.value, owner.names, owner.classes, asking.allow_missing)
    report = case.report(answers)
    report["sequential"], report["curve"] = case.sequence(answers, order), case.curve(answers)
    if asking.sequential:
        decide_sequentially(report, len(order))
    return report


def _ask(case, owner: Owner, command: str, asking: Asking, order):
    """(answers, positions in the order asked): ask the program one image after the other, in `order`.

    With `asking.sequential` it stops when the sequential test has decided.
    """
    names = owner.names
    labels, asked = np.full(len(names), -1, dtype=np.int64), []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(owner.triggers, names, Path(folder))
        for i in order:
            labels[i] = ask_program(command, Path(folder) / names[i], owner.classes, asking.allow_missing)
            asked.append(i)
            if asking.sequential and case.sequence(Answers(labels, None), asked)["decision"] != "undecided":
                break
    if (labels < 0).all():
        raise Refusal(f"--command {command} answered none of the {len(asked)} triggers that it was asked")
    answers = Answers(labels, None)
    if asking.sequential:
        return answers, asked
    return require_complete("--command", answers, names, asking.allow_missing), asked


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
