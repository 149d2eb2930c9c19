"""Times ten training steps of each kind of run, in a process of its own: `python -m figures.paper.ten_steps`.

Reads a JSON list of commands of the three scripts from stdin. Prints JSON objects, one a line: {"ready": true} once
everything is imported; then {"runs": [...], "kinds": N}, for each command {"kind", "epochs", "steps"} with the steps
of an epoch, or {"unknown": why}; then for each kind {"kind", "seconds"} with the seconds of a step, or {"kind",
"error"}. Steps are the project's own, on noise images, see `utils.benchmark`.
"""

import contextlib
import gc
import json
import os
import shlex
import sys
import types
from pathlib import Path
from typing import NamedTuple

import torch

import models
from utils.attacks.editing import FineTuning
from utils.attacks.objectives import FINETUNES, ExtractionObjective, FineTuningObjective
from utils.attacks.surrogate import Extraction
from utils.benchmark import CLASSES, Contenders, seconds_per_call
from utils.command_line.attacks import AttackCommand, distill_command, extraction_command
from utils.command_line.train import TrainCommand, train_command
from utils.data.files import ENDINGS
from utils.data.sets import HELD_OUT
from utils.system.machine import choose_device, prepare_torch
from utils.system.refusals import Refusal
from utils.training.cuda_graph import WARM_UP
from utils.training.step import autocast_forward
from utils.watermark.settings import Watermark
from utils.watermark.triggers import TriggerSet

SCRIPTS = {"train.py": train_command, "distill.py": distill_command, "extraction.py": extraction_command}
STEPS = 10
TRAINING_IMAGES = {"cifar10": 49_000, "cifar100": 49_000, "svhn": 72_257, "digits": 1295}


class Kind(NamedTuple):
    """What the seconds of a step depend on: runs of one kind are timed once."""

    objective: tuple  # what is minimised, and the numbers on which its time depends
    model: str
    width: int
    batch_size: int
    amp: bool
    compile: bool
    graph: bool
    tf32: bool
    deterministic: bool
    device: str


def parse(command: str) -> tuple[TrainCommand | AttackCommand, Kind, dict]:
    """(settings, kind, training data) of a command; Refusal where ten steps cannot stand for its run."""
    _, script, *flags = shlex.split(command)
    if script not in SCRIPTS:
        raise Refusal("no training")
    settings = SCRIPTS[script](flags)
    if isinstance(settings, TrainCommand):
        watermark, training, data, device = settings.watermark, settings.training, settings.data, settings.device
        model, width = settings.model_type, settings.width
        if not isinstance(watermark, Watermark):
            raise Refusal(f"-tt {watermark.train_type} trains in several parts")
        objective = (watermark.train_type,)
        if watermark.train_type != "none":
            ascents = watermark.steps if watermark.train_type == "margin" else 0
            objective += ascents, watermark.trigger_batch, watermark.bn_stats
    else:
        attack, theft = settings.attack, settings.theft
        training, data, device, model = theft.training, theft.own, theft.device, attack.model_type
        if isinstance(attack, Extraction):
            objective, width = (attack.name, attack.steps, theft.model_type), attack.width
        elif isinstance(attack, FineTuning) and attack.ratio is None and not attack.on:
            objective, width = (attack.name,), settings.theft.output.record["width"]
            model = attack.model_type or theft.model_type
        else:
            raise Refusal(f"-at {attack.name} is no plain training")
    kind = Kind(objective, model, width, training.batch_size, training.amp, training.compile, training.graph,
                training.tf32, training.deterministic, device)
    return settings, kind, data


def training_images(data: dict) -> int:
    """How many images are trained on; Refusal where that is not known."""
    if data["train_size"]:
        return data["train_size"]
    if data["dataset"] in TRAINING_IMAGES:
        return TRAINING_IMAGES[data["dataset"]]
    root = Path(data["data_dir"])
    has_parts = (root / "train").is_dir() and (root / "test").is_dir()
    try:
        shown = lambda folder: [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        classes = [entry for entry in shown(root / "train" if has_parts else root) if entry.is_dir()]
        count = sum(entry.name.lower().endswith(ENDINGS) for folder in classes for entry in shown(folder))
    except OSError as error:
        raise Refusal(f"the images in {root} cannot be counted ({error.strerror})") from error
    count -= 0 if has_parts else count // 5  # of classes without parts a fifth is for testing
    return count - min(HELD_OUT, count // 10)


class KindOfRun(Contenders):
    """The data, the model and the step of the run that `settings` describe, on noise."""

    def __init__(self, settings: TrainCommand | AttackCommand, kind: Kind):
        self.run, self.kind, device = settings, kind, choose_device(kind.device)
        super().__init__(types.SimpleNamespace(
            model=kind.model, width=kind.width, batch_size=kind.batch_size, num_query=100, trigger_batch=25, steps=5,
            compile=kind.compile, graph=kind.graph and device.type == "cuda"), device)

    def objective(self, name, model, amp):
        """The run's own objective, as its script makes it."""
        if isinstance(self.run, TrainCommand):
            none = torch.zeros(len(self.y_q), 0, dtype=torch.long)
            triggers = TriggerSet(self.x_q.mul(255).to(torch.uint8), self.y_q, none, none)
            silent = types.SimpleNamespace(log=lambda text: None)
            return self.run.watermark.objective(model, self.batches, triggers, data=None, run=silent, commit=None,
                                                amp=amp)
        attack = self.run.attack
        if isinstance(attack, FineTuning):
            return FineTuningObjective(model, FINETUNES[attack.variant][0])
        source = models.build(self.run.theft.model_type, CLASSES, (0.5,) * 3, (0.25,) * 3, attack.width)
        source = models.place(source, self.device).requires_grad_(False).eval()
        return ExtractionObjective(autocast_forward(source, amp, self.kind.compile), attack.loss, attack.needs_labels,
                                   attack.steps, attack.step_size, attack.eps)


def seconds_of_step(settings: TrainCommand | AttackCommand, kind: Kind) -> float:
    """Seconds of a training step of a run, the mean of ten after the first ones, which also load and record."""
    training = settings.training if isinstance(settings, TrainCommand) else settings.theft.training
    prepare_torch(training.seed, training.deterministic, training.tf32)
    timed = KindOfRun(settings, kind)
    call, _, _ = timed.our_step("the run's", kind.amp)
    seconds_per_call(call, WARM_UP + 2 if timed.device.type == "cuda" else 1, timed.device)
    return seconds_per_call(call, STEPS, timed.device)


def main() -> None:
    """Answer the commands on stdin."""
    out = sys.stdout
    tell = lambda **what: print(json.dumps(what), file=out, flush=True)
    tell(ready=True)
    runs, kinds = [], {}  # kinds: {Kind: (its number, settings of one of its runs)}
    with contextlib.redirect_stdout(sys.stderr):
        for command in json.load(sys.stdin):
            try:
                settings, kind, data = parse(command)
                epochs = (settings.training if isinstance(settings, TrainCommand) else settings.theft.training).epochs
                steps = training_images(data) // kind.batch_size
                number, _ = kinds.setdefault(kind, (len(kinds), settings))
                runs.append({"kind": number, "epochs": epochs, "steps": steps})
            except Refusal as why:
                runs.append({"unknown": str(why)})
        tell(runs=runs, kinds=len(kinds))
        for kind, (number, settings) in kinds.items():
            try:
                tell(kind=number, seconds=seconds_of_step(settings, kind))
            except Exception as error:  # no memory, no such device, ...: the other kinds can be timed all the same
                tell(kind=number, error=" ".join(f"{type(error).__name__}: {error}".split())[:200])
            gc.collect()  # the next kind needs the memory of this one
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
