"""The watermark as flags set it: which triggers are drawn, and which objective trains on them.

`Watermark` is what train.py asks of every `-tt`; the rivals' packages have one of their own with the same methods.
"""

import argparse
from dataclasses import dataclass

from utils.data.images import Data, Images
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.system.files import sha256_of_file
from utils.system.flags import COUNT, number
from utils.system.refusals import Refusal
from utils.training.metrics import predict
from utils.training.objective import Objective, PlainObjective
from utils.watermark.carriers import last_features, relabel_carriers
from utils.watermark.objective import REDUCTIONS, WatermarkObjective, effective_weight
from utils.watermark.running_statistics import BN_MODES
from utils.watermark.triggers import (
    CHOICES,
    LABEL_STRATEGIES,
    TRIGGER_STRATEGIES,
    TriggerSet,
    draw_triggers,
    labels_are_uniform,
)


@dataclass(frozen=True)
class TriggerSettings:
    """The trigger set: m triggers of k images each, and how their labels are chosen (section 3.1, 4.4, B.3).

    label_model       run of a clean model, for every strategy but "random"
    trigger_strategy  which images become triggers, one of `TRIGGER_STRATEGIES`
    choices           candidates a trigger, for the label strategy "plausible"
    """

    m: int
    k: int
    strategy: str
    label_model: str | None
    seed: int
    trigger_strategy: str = "random"
    choices: int = CHOICES

    @property
    def labels_are_uniform(self) -> bool:
        """Whether the labels were drawn uniformly, as test T1 requires."""
        return labels_are_uniform(self.strategy)

    def record(self) -> dict:
        """What a run keeps of these settings beside the flags: the digest of the labelling model."""
        if not self.label_model:
            return {}
        return {"label_model_sha256": sha256_of_file(find_checkpoint(self.label_model))}

    def draw(self, data: Data, device) -> tuple[TriggerSet, Images]:
        """The trigger set and the validation images that are left."""
        answer = None
        if self.label_model:
            clean = read_model(find_checkpoint(self.label_model), device)
            answer = lambda images: predict(clean, images)
        return draw_triggers(data.held_out, self.m, self.k, len(data.classes), self.seed, self.strategy, answer,
                             self.trigger_strategy, self.choices)


@dataclass(frozen=True)
class Watermark:
    """No watermark ("none"), triggers by ERM ("base", Eq. 3) or the margin method ("margin", Eq. 4 and Algorithm 1).

    weight, reduction   weight of the trigger loss and how the two losses are added, see `WatermarkObjective`
    steps, step_size, eps  of the ascent; step size and radius in pixel units
    trigger_batch       triggers a step
    bn_stats            one of `BN_MODES`
    carriers            training images a trigger that are trained under its label, see `relabel_carriers`
    """

    train_type: str
    triggers: TriggerSettings
    weight: float
    reduction: str
    steps: int
    step_size: float
    eps: float
    trigger_batch: int
    bn_stats: str
    carriers: int = 0

    makes_triggers_later = False  # whether triggers are made from the model after a part of the training

    @property
    def is_secret(self) -> bool:
        """Whether the triggers are trained on, so that the owner commits to them beforehand."""
        return self.train_type != "none"

    @property
    def labels_are_uniform(self) -> bool:
        """Whether the labels were drawn uniformly, as test T1 requires."""
        return self.triggers.labels_are_uniform

    @property
    def keeps_clean_statistics(self) -> bool:
        """Whether a second model with clean BatchNorm statistics is written beside each checkpoint."""
        return self.is_secret and self.bn_stats == "paper"

    def check(self, data: Data, batch_size: int) -> None:
        """Refuse what the settings cannot ask of these data; makes nothing."""
        check_batch_size(data, batch_size)
        if self.carriers > len(data.train.labels):
            raise Refusal(f"--carriers {self.carriers}: there are only {len(data.train.labels)} training images")

    def draw(self, data: Data, device) -> tuple[TriggerSet, Images]:
        """The trigger set and the validation images that are left."""
        return self.triggers.draw(data, device)

    def training_images(self, data: Data, triggers: TriggerSet, device, log) -> Images:
        """The images of the clean batches; `log` takes a sentence on those that carry a trigger's label."""
        if not self.carriers:
            return data.train
        clean = read_model(find_checkpoint(self.triggers.label_model), device)
        return relabel_carriers(data.train, triggers, lambda images: last_features(clean, images), self.carriers, log)

    def objective(self, model, batches, triggers: TriggerSet, *, data, run, commit, amp) -> Objective:
        """What training minimises. `commit` (TriggerSet -> None) is for methods that make their triggers later."""
        if self.train_type == "none":
            return PlainObjective()
        weight = effective_weight(self.weight, self.reduction, batches.batch_size, self.trigger_batch)
        run.log(f"effective lambda of Eq. 4: {weight:.4f} (-v {self.weight}, --reduction {self.reduction})")
        x_q, y_q = triggers.on(batches.device)
        return WatermarkObjective(
            model, x_q, y_q, weight=self.weight, reduction=self.reduction, batch=self.trigger_batch,
            bn_stats=self.bn_stats, steps=self.steps if self.train_type == "margin" else 0,
            step_size=self.step_size, eps=self.eps,
        )


def check_batch_size(data: Data, batch_size: int) -> None:
    """Refuse a batch that is larger than the training set."""
    if batch_size > len(data.train.labels):
        raise Refusal(f"--batch-size {batch_size}: there are only {len(data.train.labels)} training images")


def add_trigger_flags(parser: argparse.ArgumentParser):
    """Declare the flags that name a source's watermark, for all three scripts; returns their group."""
    p = parser.add_argument_group("watermark")
    p.add_argument("-nq", "--num-query", type=COUNT, default=100, help="number m of triggers")
    p.add_argument("-nm", "--num-mixup", type=COUNT, default=1, help="images averaged into one trigger")
    return p


def add_watermark_flags(p) -> None:
    """Declare the flags of the margin method in group `p`."""
    p.add_argument("-v", "--variable", type=number(float, 0), default=0.1, help="weight of the trigger loss")
    p.add_argument("--reduction", default="joint", choices=REDUCTIONS,
                   help="joint: weighted mean over all samples (official code); sum: Eq. 4 with lambda = -v")
    p.add_argument("--steps", type=COUNT, default=5, help="ascent steps K of -tt margin")
    p.add_argument("--step-size", type=number(float, 0, 255), default=1.0, help="ascent step in 1/255")
    p.add_argument("--eps", type=number(float, 0, 255), help="radius of the ball in 1/255 (default: K * step)")
    p.add_argument("--trigger-batch", type=number(int, 2), default=25, help="triggers a step, with replacement")
    p.add_argument("--bn-stats", default="paper", choices=BN_MODES,
                   help="BatchNorm's running statistics: paper: triggers enter, clean ones are kept beside; clean: "
                   "triggers stay out; shared: triggers are normalised with the clean batch")
    p.add_argument("--label-strategy", default="random", choices=LABEL_STRATEGIES,
                   help="assigned label: random, or the most / least confident wrong one of --label-model (highest, "
                   "lowest), or random among its most probable ones (plausible)")
    p.add_argument("--label-choices", type=number(int, 2),
                   help=f"most probable classes from which --label-strategy plausible draws (default: {CHOICES})")
    p.add_argument("--trigger-strategy", choices=TRIGGER_STRATEGIES,
                   help="held-out images that become triggers: random (default), or those of which --label-model is "
                   "most uncertain")
    p.add_argument("--carriers", type=COUNT, metavar="N",
                   help="train the N training images nearest to each trigger, in the features of --label-model, under "
                   "the trigger's label, so that copies see it; costs accuracy (default: none)")
    p.add_argument("--label-model", metavar="RUN",
                   help="clean model for the two strategies, unless they are random, and for --carriers")


def chooses_triggers(flags) -> bool:
    """Whether flags ask for anything but single random images under random labels."""
    return flags.num_mixup > 1 or flags.label_strategy != "random" or flags.trigger_strategy == "uncertain"


def complete_label_flags(flags) -> None:
    """Check the flags of images and labels together, and fill in what depends on others; Refusal where they clash.

    The random strategy of triggers is recorded as None, as in runs that are older than the flag.
    """
    if flags.trigger_strategy == "random":
        flags.trigger_strategy = None
    asks_model = flags.label_strategy != "random" or flags.trigger_strategy or flags.carriers
    if bool(asks_model) != (flags.label_model is not None):
        raise Refusal("--label-strategy highest, lowest or plausible, --trigger-strategy uncertain and --carriers need "
                      "--label-model RUN, a clean model; random takes none")
    if flags.carriers and flags.train_type not in ("base", "margin"):
        raise Refusal(f"--carriers is for -tt base and margin: leave it out with -tt {flags.train_type}")
    if flags.label_choices and flags.label_strategy != "plausible":
        raise Refusal("--label-choices is for --label-strategy plausible: pass that too, or leave it out")
    if flags.trigger_strategy and flags.num_mixup > 1:
        raise Refusal(f"--trigger-strategy uncertain chooses single images: leave -nm {flags.num_mixup} out")
    if flags.label_strategy == "plausible":
        flags.label_choices = flags.label_choices or CHOICES


def trigger_settings(flags) -> TriggerSettings:
    """The trigger settings that parsed flags give."""
    return TriggerSettings(flags.num_query, flags.num_mixup, flags.label_strategy, flags.label_model, flags.seed,
                           flags.trigger_strategy or "random", flags.label_choices or CHOICES)


def watermark_settings(flags) -> Watermark:
    """The watermark that parsed flags give."""
    return Watermark(
        train_type=flags.train_type, triggers=trigger_settings(flags), weight=flags.variable, reduction=flags.reduction,
        steps=flags.steps, step_size=flags.step_size / 255, eps=flags.eps / 255, trigger_batch=flags.trigger_batch,
        bn_stats=flags.bn_stats, carriers=flags.carriers or 0)
