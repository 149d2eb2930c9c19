"""The runs behind tables and figures: each is a step, a command and the file that marks its end.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from figures.paper.profiles import PROFILES
from utils.published.numbers import MODELS
from utils.system.refusals import Refusal


class RunStep(NamedTuple):
    """A command, the JSON file that it writes at its end, and the steps that it has to do with.

    needs    the steps that must be finished before it
    reports  benign runs that its report compares with, after --benign; the training does not need them
    """

    command: str
    done: Path
    needs: tuple = ()
    reports: tuple = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.done.parent

    def result(self) -> dict | None:
        """What the command wrote, None where it is not finished; Refusal where the file is damaged."""
        if not self.done.exists():
            return None
        try:
            return json.loads(self.done.read_text())
        except ValueError as error:
            raise Refusal(f"{self.done} is damaged: remove it, and the same command makes it anew") from error

    @property
    def finished(self) -> bool:
        """Whether the command's last file exists; Refusal where it is damaged."""
        return self.result() is not None

    @property
    def begun(self) -> bool:
        """Whether a run was interrupted here, which the command continues; other commands begin anew."""
        return self.done.name == "summary.json" and (self.folder / "run.json").exists() and not self.finished

    @property
    def command_now(self) -> str:
        """The command as it can be started now: without --benign where those runs are not finished yet."""
        if all(step.finished for step in self.reports):
            return self.command
        return _tidy(self.command.replace(_benign_flag(*self.reports), ""))

    @property
    def report_due(self) -> bool:
        """Whether the run is finished, but its report was made before T1p or before its benign runs were finished.

        The full command then only makes the report anew, from the checkpoints.
        """
        if not self.finished:
            return False
        if "T1p" not in self.result().get("log10_p", {"T1p": None}) and (self.folder / "checkpoints").is_dir():
            return True
        if not self.reports or not all(step.finished for step in self.reports):
            return False
        named = {row.get("model") for row in self.result().get("rows", [])}
        return not all(f"benign {step.folder.name}" in named for step in self.reports)

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do: the run is finished and its report is up to date."""
        return self.finished and not self.report_due


class RunCommands:
    """Makes the steps of a profile, of `PROFILES` by name, whose runs are in `folder`; a step is for one seed."""

    def __init__(self, name: str, folder: Path):
        self.profile, self.dir = PROFILES[name], folder

    def source(self, seed, kind="margin", tag="", extra="", m=None, dataset=None, needs=()) -> RunStep:
        """A run of train.py with -tt `kind`; the report of a watermarked one names the benign model of the same seed.

        `tag` distinguishes its folder, `extra` are further flags; `m` and `dataset` are the profile's by default.
        `needs` are steps that must be finished before it.
        """
        p = self.profile
        m, dataset, message = m or p.m, dataset or p.dataset, f"{tag}s{seed}"
        folder = self.dir / f"{dataset}_{p.model}_{kind}_{m}_{message}"
        where = f"-d {shlex.quote(str(self.dir))} -dt {dataset} -tt {kind} -nq {m} -msg {message}"
        watermark = p.rivals.get((kind, dataset), p.rivals.get(kind, p.watermark)) if kind != "none" else ""
        flags = f"{where} --seed {seed} {p.flags} {watermark}"
        reports = ()
        if kind != "none":
            reports = (self.source(seed, "none", dataset=dataset),)
            extra = f"{_benign_flag(*reports)} {extra}"
        command = _tidy(f"python train.py {flags} -mt {p.model} {extra}")
        return RunStep(command, folder / "summary.json", tuple(needs), reports)

    def attack(self, source: RunStep, tag: str, extra="", script="extraction", model=None, needs=(),
               edits=False) -> RunStep:
        """A run of extraction.py or distill.py on a source, in the folder with `tag`; `extra` are further flags.

        `model` is the surrogate's architecture (default: the profile's), which attacks that edit the source's weights
        (`edits`) do not have. `needs` are steps that must be finished besides the source.
        """
        p = self.profile
        words = shlex.split(source.command)
        value = lambda flag: words[words.index(flag) + 1]
        copied = " ".join(f"{f} {shlex.quote(value(f))}" for f in ("-d", "-dt", "-tt", "-nq", "-msg", "--seed"))
        surrogate = "" if edits else f"-dmt {model or p.model}"
        name = "distillation" if script == "distill" else "extraction"
        command = _tidy(f"python {script}.py {copied} {p.flags} -tmt {p.model} {surrogate} -admsg _{tag} {extra}")
        return RunStep(command, source.folder / f"{name}_{tag}" / "summary.json", (source, *needs))

    def analysis(self, step: RunStep, what: str) -> RunStep:
        """`utils.analyze` of a finished run; `what` is energy, margin or tsne."""
        command = _tidy(f"python -m utils.analyze {what} {_folders(step)} {self._data}")
        return RunStep(command, step.folder / f"{what}.json", (step,))

    def verdict(self, what: str, source: RunStep, suspects, benign=()) -> RunStep:
        """`utils.verify di` or `eef` (`what`) on the suspects; its exit status 1 says that a claim does not hold."""
        done = source.folder / f"{what}.json"
        bank = _benign_flag(*benign) if benign else ""
        command = _tidy(f"python -m utils.verify {what} {_folders(source)} {bank} --suspect {_folders(*suspects)} "
                        f"--json {shlex.quote(str(done))} {self._data} {self.profile.judged[what]}")
        return RunStep(command, done, tuple(dict.fromkeys((source, *suspects, *benign))))

    @property
    def _data(self) -> str:
        folder = self.profile.data_dir
        return f"--data-dir {folder}" if folder else ""

    def clean_soft(self, source: RunStep) -> RunStep:
        """The soft extraction of a source's model with clean BatchNorm statistics."""
        return self.attack(source, "soft-clean", "-at soft --teacher-bn clean")

    def named(self, source: RunStep) -> dict:
        """{name: step} of the source and its three extractions in Table 2, in the order of `MODELS`."""
        return {"source": source} | {a: self.attack(source, a, f"-at {a}") for a in MODELS[1:]}


def _benign_flag(*steps: RunStep) -> str:
    return _tidy(f"--benign {_folders(*steps)}")


def _folders(*steps: RunStep) -> str:
    return " ".join(shlex.quote(str(step.folder)) for step in steps)


def _tidy(command: str) -> str:
    return " ".join(command.split())
