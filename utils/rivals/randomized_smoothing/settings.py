"""RS's settings: the authors' defaults, the flags of train.py, their checks, and the `Watermark` interface."""

from dataclasses import dataclass

from utils.data.sets import Data, Images
from utils.rivals.randomized_smoothing.noise import noise_levels
from utils.rivals.randomized_smoothing.objective import SmoothedObjective, short_epoch_warning
from utils.rivals.randomized_smoothing.trigger_drawing import append_triggers, draw_rs_triggers
from utils.system.machine import is_distributed
from utils.system.refusals import COUNT, Refusal, number
from utils.watermark.settings import check_batch_size
from utils.watermark.trigger_settings import TriggerSettings, chooses_triggers, trigger_settings
from utils.watermark.triggers import TriggerSet

# the authors' settings where they differ from the margin paper's, and the defaults of RS's own flags
DEFAULTS = {"epoch": 100, "lr": 0.05, "rs_sigma": 1.0, "rs_sigma_step": 0.05, "rs_draws": 100, "rs_warmup": 5,
            "rs_batch": 64, "rs_freeze_bn": False, "rs_triggers": "text", "rs_label": 4}
DESCRIPTION = (
    f"RS. -ep {DEFAULTS['epoch']} and --lr {DEFAULTS['lr']} by default; momentum 0.9; the rate falls by 10 after 30, "
    "60 and 90 percent of the epochs; the authors train on half of the images: pass --train-size for that")


@dataclass(frozen=True)
class RsWatermark:
    """Randomised smoothing of the weights, with the interface of `utils.watermark.settings.Watermark`.

    kind    of triggers: "text" or "noise", see `draw_rs_triggers`, or "shared", those of -tt margin
    label   the label of all triggers of kind "text" and "noise"
    sigma, sigma_step   noise levels, see `noise_levels`; the others are described at `SmoothedObjective`
    """

    triggers: TriggerSettings
    kind: str
    label: int
    sigma: float
    sigma_step: float
    draws: int
    warmup: int
    batch: int
    freeze_bn: bool

    train_type, bn_stats = "rs", "paper"
    is_secret, makes_triggers_later, keeps_clean_statistics = True, False, False

    @property
    def labels_are_uniform(self) -> bool:
        """Whether the labels were drawn uniformly, as test T1 requires; text and noise triggers have a single label."""
        return self.triggers.labels_are_uniform

    def check(self, data: Data, batch_size: int, network=None) -> None:
        """Refuse settings that do not fit these data; makes nothing. Any `network` from outside will do."""
        check_batch_size(data, batch_size)
        if is_distributed():
            raise Refusal("-tt rs trains in one process: start it without torchrun")

    def draw(self, data: Data, device) -> tuple[TriggerSet, Images]:
        """(trigger set, the validation images that are left)."""
        if self.kind == "shared":
            return self.triggers.draw(data, device)
        return draw_rs_triggers(data, self.triggers.m, self.label, self.kind, self.triggers.seed)

    def training_images(self, data: Data, triggers: TriggerSet, device, log) -> Images:
        """Training images and triggers together: RS trains on its triggers as on any image."""
        return append_triggers(data.train, triggers)

    def objective(self, model, batches, triggers: TriggerSet, *, data, run, commit, amp) -> SmoothedObjective:
        """The objective of the epochs and of the robust passes between them; logs a warning about short epochs."""
        if note := short_epoch_warning(batches.steps, self.freeze_bn):
            run.log(note)
        x_q, y_q = triggers.on(batches.device)
        return SmoothedObjective(x_q, y_q, sigmas=noise_levels(self.sigma, self.sigma_step), draws=self.draws,
                                 warmup=self.warmup, batch=self.batch, freeze=self.freeze_bn, amp=amp)


def add_flags(add) -> None:
    """Declare RS's flags; `add(flag, help, **options of argparse)`."""
    add("--rs-sigma", "largest noise on the weights", type=number(float, 0, 1e6))
    add("--rs-sigma-step", "distance of the noise levels from 0 to --rs-sigma",
        type=number(float, 0, 1e6, open_low=True))
    add("--rs-draws", "noisy gradients a level: the time of a robust pass is as many times the levels, and a signal "
        "waits for its end", type=COUNT)
    add("--rs-warmup", "last epoch, counted from 0, without a robust pass", type=number(int, 0))
    add("--rs-batch", "triggers of a robust pass's batch; with fewer triggers all of them", type=number(int, 2))
    add("--rs-label", "label of all triggers text and noise, a number from 0", type=number(int, 0))
    add("--rs-freeze-bn", "keep the noise out of BatchNorm's running statistics: for epochs of fewer than about 60 "
        "steps", action="store_true")
    add("--rs-triggers", "text: a word in a corner; noise: one noise pattern; shared: the triggers and random labels "
        "of -tt margin", choices=("text", "noise", "shared"))


def check_flags(flags) -> None:
    """Refuse combinations of flags that cannot be served."""
    if flags.rs_warmup >= flags.epoch - 1:
        raise Refusal(f"--rs-warmup {flags.rs_warmup}: -ep {flags.epoch} leaves no epoch with a robust pass; pass -ep "
                      f"{flags.rs_warmup + 2} or more, or a smaller --rs-warmup")
    if flags.bn_stats != "paper":
        raise Refusal(f"--bn-stats {flags.bn_stats}: -tt rs trains on its triggers as on any image; leave it out")
    count = flags.rs_sigma / flags.rs_sigma_step
    if count > 10_000 or abs(count - round(count)) > 1e-6 or (flags.rs_sigma and not round(count)):
        raise Refusal(f"--rs-sigma {flags.rs_sigma:g} is no multiple of --rs-sigma-step {flags.rs_sigma_step:g}, or "
                      "one of more than 10,000: pass a step that divides it")
    if flags.rs_triggers != "shared" and chooses_triggers(flags):
        raise Refusal(f"--rs-triggers {flags.rs_triggers} are single images with one label for all: leave -nm, "
                      "--label-strategy and --trigger-strategy out, or pass --rs-triggers shared")


def settings(flags) -> RsWatermark:
    """The watermark that parsed flags give."""
    return RsWatermark(
        triggers=trigger_settings(flags), kind=flags.rs_triggers, label=flags.rs_label, sigma=flags.rs_sigma,
        sigma_step=flags.rs_sigma_step, draws=flags.rs_draws, warmup=flags.rs_warmup, batch=flags.rs_batch,
        freeze_bn=flags.rs_freeze_bn)
