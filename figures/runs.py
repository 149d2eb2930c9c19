"""The runs behind tables and figures: a profile's settings, and each run as a step, a command and the file it ends in.

Needs the standard library alone, as does `figures.plan`: Snakemake reads both in an environment of its own.
"""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from figures.paper import MODELS
from utils.refuse import Refusal


class Profile(NamedTuple):
    """Settings of all runs; `watermark` are flags of sources alone, `other` the thief's other data sets."""

    dataset: str
    flags: str
    watermark: str
    model: str
    m: int
    seeds: tuple
    finetune: int
    other: dict
    wide: bool  # whether CIFAR-100's rows are made
    rivals: dict  # -tt of a rival, or (-tt, data set): its flags, in place of `watermark`
    judged: dict  # command of utils.verify that judges a rival: its flags
    styled: str = "--embed-features 0.1"  # of EEF's victim
    K: tuple = (1, 3, 5, 8)
    sizes: tuple = (25, 50, 100, 200)
    weights: tuple = (0.25, 0.5, 1, 2, 4)
    alphas: tuple = (0.1, 0.3, 0.5, 0.7, 0.9)

    @property
    def data_dir(self) -> str | None:
        """The folder of images that `flags` name, if any."""
        words = shlex.split(self.flags)
        return words[words.index("--data-dir") + 1] if "--data-dir" in words else None


PROFILES = {
    "paper": Profile("cifar10", "", "", "res34", 100, (0, 1, 2), 100, {"SVHN": "svhn", "CIFAR-100": "cifar100"}, True,
                     {"ewe": "", "rs": "", ("ewe", "cifar100"): "-ep 100 --ewe-epochs 8 --ewe-ratio 15 "
                      "--ewe-temperature-lr 0.01 --ewe-steps 100"}, {"di": "", "eef": ""}),
    "small": Profile("folder", "--data-dir data/cifar10-jpeg --width 16 --train-size 16000 -ep 14 --amp --device cpu",
                     "--reduction sum -v 0.1", "res18", 50, (0, 1, 2), 7, {}, False,
                     {"ewe": "-ep 8 --ewe-epochs 1 --ewe-source digits", "rs": "--rs-draws 5 --rs-warmup 4"},
                     {"di": "--points 200 --walk blind --device cpu", "eef": "--device cpu"},
                     sizes=(25, 50, 100)),
    "smoke": Profile("digits", "--width 4 --train-size 512 --batch-size 64 -ep 2 --device cpu", "", "res18", 20, (0,),
                     1, {}, False,
                     {"ewe": "-ep 1 --ewe-epochs 0.2 --ewe-source 9 --batch-size 32",
                      "rs": "--rs-draws 1 --rs-warmup 0"},
                     {"di": "--points 20 --m 5 --walk blind --device cpu", "eef": "--epochs 2 --device cpu"},
                     "--embed-features 0.2", K=(1, 3), sizes=(10, 20), weights=(0.5, 2), alphas=(0.3, 0.7)),
}


class Step(NamedTuple):
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


class Runs:
    """The runs of a profile as steps, one seed at a time."""

    def __init__(self, name: str, folder: Path):
        self.profile, self.dir = PROFILES[name], folder

    def source(self, seed, kind="margin", tag="", extra="", m=None, dataset=None) -> Step:
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
        return Step(_tidy(f"python train.py {flags} -mt {p.model} {extra}"), folder / "summary.json", needs)

    def attack(self, source: Step, tag: str, extra="", script="extraction", model=None, needs=(), edits=False) -> Step:
        p = self.profile
        words = shlex.split(source.command)
        value = lambda flag: words[words.index(flag) + 1]
        copied = " ".join(f"{f} {shlex.quote(value(f))}" for f in ("-d", "-dt", "-tt", "-nq", "-msg", "--seed"))
        same = "" if edits else f"-dmt {model or p.model}"
        base = "distillation" if script == "distill" else "extraction"
        command = _tidy(f"python {script}.py {copied} {p.flags} -tmt {p.model} {same} -admsg _{tag} {extra}")
        return Step(command, source.folder / f"{base}_{tag}" / "summary.json", (source, *needs))

    def analysis(self, step: Step, what: str) -> Step:
        command = _tidy(f"python -m utils.analyze {what} {_folders(step)} {self._data}")
        return Step(command, step.folder / f"{what}.json", (step,))

    def verdict(self, what: str, source: Step, suspects, benign=()) -> Step:
        """What `utils.verify` says of the suspects; it may be that a claim does not hold, which is status 1."""
        done = source.folder / f"{what}.json"
        known = f"--benign {_folders(*benign)}" if benign else ""
        command = _tidy(f"python -m utils.verify {what} {_folders(source)} {known} --suspect {_folders(*suspects)} "
                        f"--json {shlex.quote(str(done))} {self._data} {self.profile.judged[what]}")
        return Step(command, done, tuple(dict.fromkeys((source, *suspects, *benign))))

    @property
    def _data(self) -> str:
        folder = self.profile.data_dir
        return f"--data-dir {folder}" if folder else ""

    def named(self, source: Step) -> dict:
        """Source and the three extractions of Table 2."""
        return {"source": source} | {a: self.attack(source, a, f"-at {a}") for a in MODELS[1:]}


def _folders(*steps: Step) -> str:
    return " ".join(shlex.quote(str(step.folder)) for step in steps)


def _tidy(command: str) -> str:
    return " ".join(command.split())
