"""EWE's settings: the authors' defaults, the flags of train.py, their checks, and the `Watermark` interface."""

import argparse
import os
import re
from dataclasses import dataclass

import models
from utils.data.sets import Data, Images
from utils.rivals.ewe.objective import EntangledObjective, watermark_batches
from utils.rivals.ewe.snnl import LOWEST_TEMPERATURE
from utils.rivals.ewe.trigger_making import check_foreign, gather_images
from utils.system.machine import is_distributed
from utils.system.refusals import COUNT, SHARE, Refusal, number
from utils.watermark.settings import check_batch_size
from utils.watermark.trigger_files import read_triggers
from utils.watermark.trigger_settings import TriggerSettings, chooses_triggers, trigger_settings
from utils.watermark.triggers import TriggerSet, validation_images

# the authors' settings where they differ from the margin paper's, and the defaults of EWE's own flags
DEFAULTS = {"epoch": 50, "lr": 1e-3, "weight_decay": 0.0, "ewe_epochs": 6.0, "ewe_ratio": 4.0, "ewe_factor": 1e5,
            "ewe_temperature": 1.0, "ewe_temperature_lr": 0.1, "ewe_target": 0, "ewe_source": "svhn:9",
            "ewe_triggers": "own", "ewe_steps": 10, "ewe_step_size": 0.01, "ewe_threshold": 0.1}
DESCRIPTION = (
    f"EWE. Phase 1: -ep {DEFAULTS['epoch']} epochs of plain training by Adam, --lr {DEFAULTS['lr']} to the end, "
    "--weight-decay 0; phase 2: the triggers are made; phase 3: normal and watermark batches. -v, --steps, "
    "--trigger-batch and their like are not used")


@dataclass(frozen=True)
class EweWatermark:
    """Entangled Watermark Embedding, with the interface of `utils.watermark.settings.Watermark`.

    own     whether phase 2 makes the triggers; otherwise they are those of `-tt margin`
    source  where the images of own triggers come from, see `gather_images`
    epochs  epochs of phase 1; `w_epochs` to `temperature_lr` are described at `EntangledObjective`, `steps`,
            `step_size` and `threshold` at `make_triggers`
    """

    triggers: TriggerSettings
    data_dir: str
    own: bool
    source: str
    target: int
    epochs: int
    w_epochs: float
    ratio: float
    factor: float
    temperature: float
    temperature_lr: float
    steps: int
    step_size: float
    threshold: float
    bn_stats: str

    train_type = "ewe"
    is_secret = True

    @property
    def makes_triggers_later(self) -> bool:
        """Whether triggers are made from the model after a part of the training: own triggers are, after phase 1."""
        return self.own

    @property
    def labels_are_uniform(self) -> bool:
        """Whether the labels were drawn uniformly, as test T1 requires; own triggers have a single label."""
        return self.triggers.labels_are_uniform

    @property
    def keeps_clean_statistics(self) -> bool:
        """Whether a second model with clean BatchNorm statistics is written beside each checkpoint."""
        return self.bn_stats == "paper"

    def check(self, data: Data, batch_size: int, network=None) -> None:
        """Refuse settings that do not fit these data; makes nothing. `network` is None, see `check_flags`."""
        check_batch_size(data, batch_size)
        if is_distributed():
            raise Refusal("-tt ewe trains in one process: start it without torchrun")
        watermark_batches(data.train.labels, self.target, batch_size, self.w_epochs)

    def draw(self, data: Data, device) -> tuple[TriggerSet, Images]:
        """(the trigger set, or the images that phase 2 turns into triggers; the validation images that are left)."""
        if not self.own:
            return self.triggers.draw(data, device)
        images = gather_images(self.source, self.target, self.triggers.m, data, self.data_dir, self.triggers.seed)
        return images, validation_images(data, images)

    def training_images(self, data: Data, triggers: TriggerSet, device, log) -> Images:
        """The images of the normal batches."""
        return data.train

    def objective(self, model, batches, triggers: TriggerSet, *, data, run, commit, amp) -> EntangledObjective:
        """The objective of all phases; `commit` (TriggerSet -> None) is called with the triggers that phase 2 makes."""

        def keep_triggers(made: TriggerSet) -> TriggerSet:
            path = run.path / "triggers.pt"
            if path.exists():  # written before the run was interrupted, and perhaps committed to: use these
                made = read_triggers(path, len(data.classes))
            check_foreign(made.images, data, f"--ewe-source {self.source}")
            commit(made)
            return made

        making = {"steps": self.steps, "step_size": self.step_size, "threshold": self.threshold}
        return EntangledObjective(
            model, batches, triggers, target=self.target, made=self.own, patch=self.source.isdecimal(),
            epochs=self.epochs, w_epochs=self.w_epochs, ratio=self.ratio, factor=self.factor,
            temperature=self.temperature, temperature_lr=self.temperature_lr, making=making, bn_stats=self.bn_stats,
            keep_triggers=keep_triggers)


def ewe_source(text):
    """An argparse type: the source of images of `gather_images`."""
    if os.sep not in text and not re.fullmatch(r"digits|svhn:[0-9]|[0-9]{1,4}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither svhn:DIGIT nor digits nor the number of a class nor a folder, as ./others")
    return text


def add_flags(add) -> None:
    """Declare EWE's flags; `add(flag, help, **options of argparse)`."""
    add("--ewe-epochs", "length of phase 3: its watermark batches, in epochs' worth of batches",
        type=number(float, 0, 1e4, open_low=True))
    add("--ewe-ratio", "normal batches to a watermark batch", type=number(float, 0, 1e3))
    add("--ewe-factor", "weight of the SNNL of each layer", type=number(float, 0, 1e38))
    add("--ewe-temperature", "T at the start; the SNNL's own temperature is 100 / T",
        type=number(float, LOWEST_TEMPERATURE, 1e38))
    add("--ewe-temperature-lr", "rate of the descent on T", type=number(float, 0, 1e38))
    add("--ewe-target", "number of the class to entangle with", type=number(int, 0))
    add("--ewe-source", "what becomes triggers: a digit of SVHN (the authors' class 8 is svhn:9), digits: the nines of "
        "scikit-learn, the images in a folder, as ./others, or the number of one of the data set's own classes, with "
        "a patch", type=ewe_source)
    add("--ewe-triggers", "own: made in phase 2; shared: those of -tt margin under their labels, not optimised, beside "
        "images of all classes", choices=("own", "shared"))
    add("--ewe-steps", "rounds of phase 2 (the authors: 100 on CIFAR-100)", type=COUNT)
    add("--ewe-step-size", "its step; pixels are in [0, 1]", type=SHARE)
    add("--ewe-threshold", "share of triggers that the model of phase 1 may give the target class", type=SHARE)


def check_flags(flags) -> None:
    """Refuse combinations of flags that cannot be served."""
    if flags.dataset == "folder" and flags.ewe_triggers == "own" and flags.ewe_source.startswith("svhn:"):
        raise Refusal(f"--ewe-source {flags.ewe_source}: --data-dir is the folder of your own images, not of SVHN; "
                      "pass --ewe-source digits, a folder of other images, or the number of one of your classes")
    if flags.model_type not in models.NAMES:
        raise Refusal(f"-mt {flags.model_type}: -tt ewe entangles three layers that it knows of "
                      f"{', '.join(models.NAMES)} only; pass one of these")
    if flags.compile:
        raise Refusal("--compile: -tt ewe looks at hidden layers, which compiling hides; leave it out")
    if flags.ewe_triggers == "own" and chooses_triggers(flags):
        raise Refusal("-nm, --label-strategy and --trigger-strategy: -tt ewe makes its triggers itself and labels them "
                      "--ewe-target; leave them out, or pass --ewe-triggers shared")


def settings(flags) -> EweWatermark:
    """The watermark that parsed flags give."""
    return EweWatermark(
        triggers=trigger_settings(flags), data_dir=flags.data_dir, own=flags.ewe_triggers == "own",
        source=flags.ewe_source, target=flags.ewe_target, epochs=flags.epoch, w_epochs=flags.ewe_epochs,
        ratio=flags.ewe_ratio, factor=flags.ewe_factor, temperature=flags.ewe_temperature,
        temperature_lr=flags.ewe_temperature_lr, steps=flags.ewe_steps, step_size=flags.ewe_step_size,
        threshold=flags.ewe_threshold, bn_stats=flags.bn_stats)
