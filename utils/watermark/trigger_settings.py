"""The trigger set as flags set it: images, how labels are chosen, and what the flags must fulfil together."""

import argparse
import time
from dataclasses import dataclass

from utils.data.sets import Data, Images
from utils.runs.checkpoints import find_checkpoint, instead_of_mt, read_model
from utils.system.files import sha256_of_file
from utils.system.refusals import COUNT, Refusal, number
from utils.training.metrics import predict
from utils.watermark.prepared import (
    Prepared,
    check_images,
    checked_beacon,
    describe_beacon,
    read_prepared,
    round_time,
)
from utils.watermark.triggers import (
    CHOICES,
    LABEL_STRATEGIES,
    TRIGGER_STRATEGIES,
    TriggerSet,
    draw_triggers,
    labels_are_uniform,
    validation_images,
)

NUM_QUERY = 100  # default of -nq
PREPARED_FLAGS = {"num_query": NUM_QUERY, "num_mixup": 1, "label_strategy": "random", "label_choices": None,
                  "trigger_strategy": None}  # flags that --prepared decides, and their defaults


@dataclass(frozen=True)
class TriggerSettings:
    """The trigger set: m triggers of k images each, and how their labels are chosen (section 3.1, 4.4, B.3).

    label_model       run of a clean model, for every strategy but "random"
    trigger_strategy  which images become triggers, one of `TRIGGER_STRATEGIES`
    choices           candidates a trigger, for the label strategy "plausible"
    prepared, beacon  prepared images and the beacon that labels them, or None: see `utils.watermark.prepared`
    """

    m: int
    k: int
    strategy: str
    label_model: str | None
    seed: int
    trigger_strategy: str = "random"
    choices: int = CHOICES
    prepared: Prepared | None = None
    beacon: str | None = None

    @property
    def labels_are_uniform(self) -> bool:
        """Whether the labels were drawn uniformly, as test T1 requires."""
        return labels_are_uniform(self.strategy)

    def record(self) -> dict:
        """What a run keeps of these settings beside the flags: digest of the label model, commitment to the images."""
        record = {}
        if self.label_model:
            record["label_model_sha256"] = sha256_of_file(find_checkpoint(self.label_model))
        if self.prepared:
            record["image_commitment"] = self.prepared.record["sha256"]
        return record

    @property
    def opening(self) -> dict | None:
        """What opens the commitment to prepared images, with the beacon's value; None where a seed draws the labels."""
        return self.prepared.record | {"beacon": self.beacon} if self.prepared else None

    def read_label_model(self, device):
        """The clean model of `label_model`."""
        with instead_of_mt("--label-model imports no code; name a clean model of another architecture"):
            return read_model(find_checkpoint(self.label_model), device)

    def draw(self, data: Data, device) -> tuple[TriggerSet, Images]:
        """The trigger set and the validation images that are left."""
        if self.prepared:
            triggers = self.prepared.labelled(self.beacon)
            check_images(triggers, data)
            if self.prepared.record["classes"] != data.classes:
                raise Refusal("--prepared was made for other class names: pass the data that were prepared")
            return triggers, validation_images(data, triggers)
        answer = None
        if self.label_model:
            clean = self.read_label_model(device)
            answer = lambda images: predict(clean, images)
        return draw_triggers(data.held_out, self.m, self.k, len(data.classes), self.seed, self.strategy, answer,
                             self.trigger_strategy, self.choices)


def add_trigger_flags(parser: argparse.ArgumentParser):
    """Declare the flags that name a source's watermark, for all three scripts; returns their group."""
    p = parser.add_argument_group("watermark")
    p.add_argument("-nq", "--num-query", type=COUNT, default=NUM_QUERY, help="number m of triggers")
    p.add_argument("-nm", "--num-mixup", type=COUNT, default=1, help="images averaged into one trigger")
    return p


def add_label_flags(p) -> None:
    """Declare the flags that choose the images of the triggers and their labels in group `p`."""
    p.add_argument("--label-strategy", default="random", choices=LABEL_STRATEGIES,
                   help="assigned label: random, or the most / least confident wrong one of --label-model (highest, "
                   "lowest), or random among its most probable ones (plausible)")
    p.add_argument("--label-choices", type=number(int, 2),
                   help=f"most probable classes from which --label-strategy plausible draws (default: {CHOICES})")
    p.add_argument("--trigger-strategy", choices=TRIGGER_STRATEGIES,
                   help="held-out images that become triggers: random (default), or those of which --label-model is "
                   "most uncertain")
    p.add_argument("--label-model", metavar="RUN",
                   help="clean model for the two strategies, unless they are random, and for --carriers")


def chooses_triggers(flags) -> bool:
    """Whether flags ask for anything but single random images under random labels."""
    return flags.num_mixup > 1 or flags.label_strategy != "random" or flags.trigger_strategy == "uncertain"


def complete_watermark_flags(flags) -> None:
    """Check the flags of the triggers of train.py together, and fill in what depends on others; Refusal on a clash."""
    if (flags.prepared is None) != (flags.beacon is None):
        raise Refusal("--prepared and --beacon go together: the one has the images, the other draws their labels")
    if flags.prepared:
        _take_prepared_flags(flags)
    for name in ("carriers", "prepared"):
        if getattr(flags, name) and flags.train_type not in ("base", "margin"):
            raise Refusal(f"--{name} is for -tt base and margin: leave it out with -tt {flags.train_type}")
    if flags.prepared and bool(flags.carriers) != (flags.label_model is not None):
        raise Refusal("--carriers needs --label-model RUN, and with --prepared nothing else does")
    if not flags.prepared:
        complete_label_flags(flags, flags.carriers)


def _take_prepared_flags(flags) -> None:
    """Take the flags that the preparation decided from its settings; Refusal where the command says otherwise."""
    flags.beacon = checked_beacon(flags.beacon)
    prepared = read_prepared(flags.prepared)
    if (round_time(prepared.record) or 0) > time.time():
        raise Refusal(f"--beacon {flags.beacon[:16]}... cannot be the value of {describe_beacon(prepared.record)}")
    settings = prepared.settings
    for name, default in PREPARED_FLAGS.items():
        if getattr(flags, name) not in (default, settings.get(name)):
            raise Refusal(f"--prepared {flags.prepared} was made with {name.replace('_', '-')} {settings.get(name)}, "
                          f"not {getattr(flags, name)}: leave that flag out")
        setattr(flags, name, settings.get(name))


def complete_label_flags(flags, other_use=None) -> None:
    """Check the flags of images and labels together, and fill in what depends on others; Refusal where they clash.

    `other_use` says whether something else needs the label model. The random strategy of triggers is recorded as None,
    as in runs that are older than the flag.
    """
    if flags.trigger_strategy == "random":
        flags.trigger_strategy = None
    asks_model = flags.label_strategy != "random" or flags.trigger_strategy or other_use
    if bool(asks_model) != (flags.label_model is not None):
        raise Refusal("--label-strategy highest, lowest or plausible, --trigger-strategy uncertain and --carriers need "
                      "--label-model RUN, a clean model; random takes none")
    if flags.label_choices and flags.label_strategy != "plausible":
        raise Refusal("--label-choices is for --label-strategy plausible: pass that too, or leave it out")
    if flags.trigger_strategy and flags.num_mixup > 1:
        raise Refusal(f"--trigger-strategy uncertain chooses single images: leave -nm {flags.num_mixup} out")
    if flags.label_strategy == "plausible":
        flags.label_choices = flags.label_choices or CHOICES


def trigger_settings(flags) -> TriggerSettings:
    """The trigger settings that parsed flags give."""
    prepared = read_prepared(flags.prepared) if flags.prepared else None
    return TriggerSettings(flags.num_query, flags.num_mixup, flags.label_strategy, flags.label_model, flags.seed,
                           flags.trigger_strategy or "random", flags.label_choices or CHOICES, prepared,
                           flags.beacon)
