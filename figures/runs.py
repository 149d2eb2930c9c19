"""The runs behind tables and figures: in which sizes they are made, the command of each, and how one is started.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

import functools
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from figures.published import MODELS
from utils.system.refusals import Interrupted, Refusal

ROOT = Path(__file__).resolve().parents[1]
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# ---- sizes ----


class Profile(NamedTuple):
    """Settings of all runs of a profile; flags are those of the three scripts."""

    dataset: str
    flags: str  # of every run
    watermark: str  # further flags of watermarked sources
    model: str
    m: int  # number of triggers
    seeds: tuple
    finetune: int  # epochs of fine-tuning (Table 9)
    other: dict = {}  # the thief's other data sets, {name in the paper: -dsrc}; with CIFAR-100 Table 2 has its half
    rivals: dict = {}  # {-tt of a rival, or (-tt, data set): flags in place of `watermark`}
    judged: dict = {}  # {command of utils.verify that tests a rival: its flags}
    styled: str = "--embed-features 0.1"  # flags of EEF's victim
    K: tuple = (1, 3, 5, 8)  # ascent steps, then numbers of triggers and weights lambda of Figure 6
    sizes: tuple = (25, 50, 100, 200)
    weights: tuple = (0.25, 0.5, 1, 2, 4)
    alphas: tuple = (0.1, 0.3, 0.5, 0.7, 0.9)  # weights alpha of distillation in Figure 4

    @property
    def data_dir(self) -> str | None:
        """The folder of images that `flags` name, if any."""
        words = shlex.split(self.flags)
        return words[words.index("--data-dir") + 1] if "--data-dir" in words else None


PROFILES = {
    "paper": Profile("cifar10", "", "", "res34", 100, (0, 1, 2), 100, {"SVHN": "svhn", "CIFAR-100": "cifar100"},
                     {"ewe": "", "rs": "", ("ewe", "cifar100"): "-ep 100 --ewe-epochs 8 --ewe-ratio 15 "
                      "--ewe-temperature-lr 0.01 --ewe-steps 100"}, {"di": "", "eef": ""}),
    "small": Profile("folder", "--data-dir data/cifar10-jpeg --width 16 --train-size 16000 -ep 14 --amp --device cpu",
                     "--reduction sum -v 0.1", "res18", 50, (0, 1, 2), 7, {},
                     {"ewe": "-ep 8 --ewe-epochs 5 --ewe-source digits --bn-stats shared",
                      "rs": "-ep 100 --rs-draws 10 --rs-freeze-bn"},
                     {"di": "--points 200 --walk blind --device cpu", "eef": "--points 400 --device cpu"},
                     sizes=(25, 50, 100)),
    "smoke": Profile("digits", "--width 4 --train-size 512 --batch-size 64 -ep 2 --device cpu", "", "res18", 20, (0,),
                     1, {},
                     {"ewe": "-ep 1 --ewe-epochs 0.2 --ewe-source 9 --batch-size 32",
                      "rs": "--rs-draws 1 --rs-warmup 0"},
                     {"di": "--points 20 --m 5 --walk blind --device cpu", "eef": "--epochs 2 --device cpu"},
                     "--embed-features 0.2", K=(1, 3), sizes=(10, 20), weights=(0.5, 2), alphas=(0.3, 0.7)),
}
REGIME = Profile("folder", "--data-dir data/cifar10-jpeg --amp fp16", "", "res34", 100, (0, 1, 2), 0)
REGIMES = {  # the profiles of figures.regime
    "regime": REGIME,
    "regime-narrow": REGIME._replace(flags="--data-dir data/cifar10-jpeg --amp --width 16", model="res18"),
    "regime-smoke": REGIME._replace(dataset="digits", flags="--width 4 --train-size 512 --batch-size 64 --device cpu",
                                    model="res18", m=20, seeds=(0,)),
}


# ---- commands ----


class RunStep(NamedTuple):
    """A command, the JSON file that it writes at its end, and the steps that must be finished before it."""

    command: str
    done: Path
    needs: tuple = ()

    @property
    def folder(self) -> Path:
        return self.done.parent

    def result(self) -> dict | None:
        """What the command wrote, None where it is not finished; Refusal where the file is damaged, or is of a copy of
        an earlier training of its source."""
        try:
            found = json.loads(self.done.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise Refusal(f"{self.done} is damaged: remove it, and the same command makes it anew") from error
        if "source_sha256" in found:
            source = sorted(self.folder.parent.glob("checkpoints/checkpoint_[nl]a*.pt"))
            is_whole = {"checkpoint_latest.pt", "checkpoint_nat_best.pt"} <= {path.name for path in source}
            present = [_sha256(path, path.stat().st_mtime_ns, path.stat().st_size) for path in source]
            if is_whole and found["source_sha256"] not in present:
                raise Refusal(f"{self.folder} is a copy of an earlier training of its source: remove it, and the same "
                              "command makes it anew")
        return found


@functools.cache
def _sha256(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class RunCommands(NamedTuple):
    """The steps of one seed of a profile, whose runs are in the folder `dir`."""

    profile: Profile
    dir: Path
    seed: int

    def source(self, kind="margin", tag="", extra="", m=None, dataset=None, needs=(), compared=True) -> RunStep:
        """A run of train.py with -tt `kind`; the report of a watermarked one names the benign model of the same seed,
        unless it is not to be `compared`.

        `tag` distinguishes its folder, `extra` are further flags; `m` and `dataset` are the profile's by default.
        """
        p = self.profile
        m, dataset, message = m or p.m, dataset or p.dataset, f"{tag}s{self.seed}"
        watermark, benign = "", ()
        if kind != "none":
            watermark = p.rivals.get((kind, dataset), p.rivals.get(kind, p.watermark))
            benign = (self.source("none", dataset=dataset),) if compared else ()
        command = (f"python train.py -d {shlex.quote(str(self.dir))} -dt {dataset} -tt {kind} -nq {m} -msg {message} "
                   f"--seed {self.seed} {p.flags} {watermark} -mt {p.model} {_folders('--benign', benign)} {extra}")
        done = self.dir / f"{dataset}_{p.model}_{kind}_{m}_{message}" / "summary.json"
        return RunStep(_tidy(command), done, tuple(dict.fromkeys((*needs, *benign))))

    def attack(self, source: RunStep, tag: str, extra="", script="extraction", model=None, needs=(),
               edits=False) -> RunStep:
        """A run of extraction.py or distill.py on a source, in the folder with `tag`; `extra` are further flags.

        `model` is the surrogate's architecture (default: the profile's), which attacks that edit the source's weights
        (`edits`) do not have. `needs` are steps that must be finished besides the source.
        """
        p, words = self.profile, shlex.split(source.command)
        copied = " ".join(f"{flag} {shlex.quote(words[words.index(flag) + 1])}"
                          for flag in ("-d", "-dt", "-tt", "-nq", "-msg", "--seed"))
        surrogate = "" if edits else f"-dmt {model or p.model}"
        name = "distillation" if script == "distill" else "extraction"
        command = f"python {script}.py {copied} {p.flags} -tmt {p.model} {surrogate} -admsg _{tag} {extra}"
        return RunStep(_tidy(command), source.folder / f"{name}_{tag}" / "summary.json", (source, *needs))

    def copy(self, source: RunStep, attack="soft", extra="", tag=None, model=None, edits=False) -> RunStep:
        """The extraction of a source with -at `attack`, which is also its tag by default."""
        return self.attack(source, tag or attack, f"-at {attack} {extra}", model=model, edits=edits)

    def models(self, source: RunStep) -> dict:
        """{name: step} of the source and its three extractions in Table 2, in the order of `MODELS`."""
        return {"source": source} | {name: self.copy(source, name) for name in MODELS[1:]}

    def analysis(self, step: RunStep, what: str) -> RunStep:
        """`utils.analyze` of a finished run; `what` is energy, margin or tsne."""
        command = f"python -m utils.analyze {what} {_folders('', [step])} {self._data_flag}"
        return RunStep(_tidy(command), step.folder / f"{what}.json", (step,))

    def verdict(self, what: str, source: RunStep, suspects, benign=()) -> RunStep:
        """`utils.verify di` or `eef` (`what`) on the suspects; its exit status 1 says that a claim does not hold."""
        done = source.folder / f"{what}.json"
        command = (f"python -m utils.verify {what} {_folders('', [source])} {_folders('--benign', benign)} "
                   f"{_folders('--suspect', suspects)} --json {shlex.quote(str(done))} {self._data_flag} "
                   f"{self.profile.judged[what]}")
        return RunStep(_tidy(command), done, tuple(dict.fromkeys((source, *suspects, *benign))))

    @property
    def _data_flag(self) -> str:
        folder = self.profile.data_dir
        return f"--data-dir {folder}" if folder else ""


def _folders(flag: str, steps) -> str:
    """The flag with the run folders of the steps; nothing where there are none."""
    return " ".join([flag, *(shlex.quote(str(step.folder)) for step in steps)]) if steps else ""


def _tidy(command: str) -> str:
    return " ".join(command.split())


# ---- starting them ----


def run_steps(steps, jobs: int = 1, keep_going: bool = False) -> None:
    """Run the steps that are due, at most `jobs` at once in processes of their own, each after those that it needs.

    A step that was interrupted continues where it was. Whether one succeeded is decided by the file at its end, not by
    its exit status, because utils.verify exits with 1 where a claim does not hold. After a failure no further step is
    begun, or, to `keep_going`, only those that do not need it; then Refusal names what failed. A signal that stops
    this process is passed on as SIGTERM; the scripts then save, say so and exit. Where one was stopped before it could
    say so, Interrupted is raised.
    """
    waiting, running, failed, said, received = [step for step in steps if step.result() is None], {}, [], [], []

    def stop(signum, frame):
        # timeout sends its signal twice, and a script that gets a second one while it saves ends at once
        if received and time.monotonic() < received[0][1] + 1:
            return
        received.append((signum, time.monotonic()))
        for process in running.values():
            process.terminate()

    old = {s: signal.signal(s, stop) for s in STOPS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        while running or waiting:
            full = received or len(running) == jobs or failed and not keep_going
            free = [] if full else [step for step in waiting if all(need.result() is not None for need in step.needs)]
            for step in free[: jobs - len(running)]:
                waiting.remove(step)
                running[step] = _start(step)
                if received:  # before this process could be told
                    running[step].terminate()
            if not running:
                break  # what is left needs a step that failed
            ended = next((step for step in running if running[step].poll() is not None), None)
            if ended is None:
                time.sleep(0.02)
                continue
            status = running.pop(ended).returncode
            if received:
                said.append(status > 0)
            elif ended.result() is None:
                how = f"by signal {-status}" if status < 0 else f"with status {status}, without {ended.done}"
                failed.append(f"this command ended {how}: {ended.command}")
    except BaseException:
        for process in running.values():
            process.terminate()
        raise
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
    if received and said and all(said):
        sys.exit(128 + received[0][0])
    if received:
        raise Interrupted(received[0][0], "interrupted; what was saved is intact, and the same command goes on")
    if failed:
        raise Refusal(f"mend what stands above, and the same call goes on; {'; '.join(failed)}")


def _start(step: RunStep) -> subprocess.Popen:
    """The process of a step, in a session of its own, so that it gets no Ctrl-C of a terminal and no group's signal."""
    print(f"$ {step.command}", flush=True)
    words = [sys.executable, *shlex.split(step.command)[1:]]
    if words[1].endswith(".py"):
        words[1] = str(ROOT / words[1])
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})
