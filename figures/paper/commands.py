"""TODO (figures.runs)"""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from figures.paper.numbers import MODELS
from figures.paper.profiles import PROFILES
from utils.system.refusals import Refusal


class RunStep(NamedTuple):
    """A command, the file that marks its end, and the steps before it."""

    command: str
    done: Path
    needs: tuple = ()

    @property
    def folder(self) -> Path:
        return self.done.parent

    def result(self) -> dict | None:
        """The JSON at its end, None before."""
        if not self.done.exists():
            return None
        try:
            return json.loads(self.done.read_text())
        except ValueError as error:
            raise Refusal(f"{self.done} is damaged: remove it, and the same command makes it anew") from error

    @property
    def finished(self) -> bool:
        return self.result() is not None


class RunCommands:
    """The runs of a profile as steps, one seed at a time."""

    def __init__(self, name: str, folder: Path):
        self.profile, self.dir = PROFILES[name], folder

    def source(self, seed, kind="margin", tag="", extra="", m=None, dataset=None) -> RunStep:
        p = self.profile
        m, dataset, message = m or p.m, dataset or p.dataset, f"{tag}s{seed}"
        folder = self.dir / f"{dataset}_{p.model}_{kind}_{m}_{message}"
        where = f"-d {shlex.quote(str(self.dir))} -dt {dataset} -tt {kind} -nq {m} -msg {message}"
        watermark = p.rivals.get((kind, dataset), p.rivals.get(kind, p.watermark)) if kind != "none" else ""
        flags = f"{where} --seed {seed} {p.flags} {watermark}"
        needs = ()
        if kind != "none":
            needs = (self.source(seed, "none", dataset=dataset),)
            extra = f"--benign {shlex.quote(str(needs[0].folder))} {extra}"
        return RunStep(_tidy(f"python train.py {flags} -mt {p.model} {extra}"), folder / "summary.json", needs)

    def attack(self, source: RunStep, tag: str, extra="", script="extraction", model=None, needs=(),
               edits=False) -> RunStep:
        p = self.profile
        words = shlex.split(source.command)
        value = lambda flag: words[words.index(flag) + 1]
        copied = " ".join(f"{f} {shlex.quote(value(f))}" for f in ("-d", "-dt", "-tt", "-nq", "-msg", "--seed"))
        same = "" if edits else f"-dmt {model or p.model}"
        base = "distillation" if script == "distill" else "extraction"
        command = _tidy(f"python {script}.py {copied} {p.flags} -tmt {p.model} {same} -admsg _{tag} {extra}")
        return RunStep(command, source.folder / f"{base}_{tag}" / "summary.json", (source, *needs))

    def analysis(self, step: RunStep, what: str) -> RunStep:
        command = _tidy(f"python -m utils.analyze {what} {_folders(step)} {self._data}")
        return RunStep(command, step.folder / f"{what}.json", (step,))

    def verdict(self, what: str, source: RunStep, suspects, benign=()) -> RunStep:
        """What `utils.verify` says of the suspects; it may be that a claim does not hold, which is status 1."""
        done = source.folder / f"{what}.json"
        known = f"--benign {_folders(*benign)}" if benign else ""
        command = _tidy(f"python -m utils.verify {what} {_folders(source)} {known} --suspect {_folders(*suspects)} "
                        f"--json {shlex.quote(str(done))} {self._data} {self.profile.judged[what]}")
        return RunStep(command, done, tuple(dict.fromkeys((source, *suspects, *benign))))

    @property
    def _data(self) -> str:
        folder = self.profile.data_dir
        return f"--data-dir {folder}" if folder else ""

    def named(self, source: RunStep) -> dict:
        """Source and the three extractions of Table 2."""
        return {"source": source} | {a: self.attack(source, a, f"-at {a}") for a in MODELS[1:]}


def _folders(*steps: RunStep) -> str:
    return " ".join(shlex.quote(str(step.folder)) for step in steps)


def _tidy(command: str) -> str:
    return " ".join(command.split())
