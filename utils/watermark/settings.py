"""The watermark as flags set it: its trigger set, and the objective that trains on it.

`Watermark` is what train.py asks of every `-tt`; the rivals' packages have one of their own with the same methods.
"""

from dataclasses import dataclass

from utils.data.sets import Data, Images
from utils.runs.trial import require_gradient_of_images, require_two_passes
from utils.system.refusals import COUNT, Refusal, number
from utils.training.objective import Objective, PlainObjective
from utils.watermark.carriers import last_features, relabel_carriers, require_features
from utils.watermark.objective import REDUCTIONS, WatermarkObjective, effective_weight
from utils.watermark.running_statistics import BN_MODES, KEEPS_CLEAN, RunningStatistics
from utils.watermark.trigger_settings import TriggerSettings, add_label_flags, trigger_settings
from utils.watermark.triggers import TriggerSet


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
        """Whether a second model with clean BatchNorm statistics is written beside each checkpoint, if the network has
        any."""
        return self.is_secret and self.bn_stats in KEEPS_CLEAN

    def check(self, data: Data, batch_size: int, network=None) -> None:
        """Refuse what the settings cannot ask of these data, or of `network`, a model from outside; makes nothing."""
        check_batch_size(data, batch_size)
        if self.carriers > len(data.train.labels):
            raise Refusal(f"--carriers {self.carriers}: there are only {len(data.train.labels)} training images")
        if self.carriers:
            require_features(self.triggers.read_label_model("cpu"))
        if network is not None and self.is_secret:
            RunningStatistics(network, self.bn_stats)  # which refuses layers that it cannot follow
            if self.bn_stats != "shared":
                require_two_passes(f"-tt {self.train_type}", network)
        if network is not None and self.train_type == "margin":
            require_gradient_of_images("-tt margin", network)

    def draw(self, data: Data, device) -> tuple[TriggerSet, Images]:
        """The trigger set and the validation images that are left."""
        return self.triggers.draw(data, device)

    def training_images(self, data: Data, triggers: TriggerSet, device, log) -> Images:
        """The images of the clean batches; `log` takes a sentence on those that carry a trigger's label."""
        if not self.carriers:
            return data.train
        clean = self.triggers.read_label_model(device)
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
                   "triggers stay out; shared: triggers (of ewe: watermark batches) are normalised with a clean batch; "
                   "eval: paper, with the ascent of -tt margin in eval mode")
    add_label_flags(p)
    p.add_argument("--carriers", type=COUNT, metavar="N",
                   help="train the N training images nearest to each trigger, in the features of --label-model, under "
                   "the trigger's label, so that copies see it; costs accuracy (default: none)")
    p.add_argument("--prepared", metavar="DIR",
                   help="take the triggers' images from `python -m utils.verify prepare DIR`; needs --beacon")
    p.add_argument("--beacon", metavar="HEX", help="public randomness, known only after the preparation, that draws "
                   "the labels of --prepared")


def watermark_settings(flags) -> Watermark:
    """The watermark that parsed flags give."""
    return Watermark(
        train_type=flags.train_type, triggers=trigger_settings(flags), weight=flags.variable, reduction=flags.reduction,
        steps=flags.steps, step_size=flags.step_size / 255, eps=flags.eps / 255, trigger_batch=flags.trigger_batch,
        bn_stats=flags.bn_stats, carriers=flags.carriers or 0)
