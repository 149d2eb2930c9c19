"""The command line of train.py."""

import argparse
from dataclasses import dataclass

import models
import utils.rivals.embedded_features as eef_settings
import utils.rivals.ewe.settings as ewe_settings
import utils.rivals.randomized_smoothing.settings as rs_settings
import utils.watermark.settings as margin_settings
from utils.command_line.parser import add_train_type, parser_of
from utils.data.sets import Data, add_data_flags
from utils.rivals.ewe.settings import EweWatermark
from utils.rivals.randomized_smoothing.settings import RsWatermark
from utils.runs.architecture import ARCHITECTURE_HELP
from utils.runs.settings import OutputSettings, add_output_flags, source_folder
from utils.system.refusals import COUNT, Parser, Refusal
from utils.training.settings import TrainingSettings, add_training_flags, training_settings
from utils.watermark.running_statistics import RunningStatistics
from utils.watermark.source_checkpoint import SourceFacts
from utils.watermark.trigger_settings import add_trigger_flags, complete_watermark_flags

RIVALS = {"ewe": ewe_settings, "rs": rs_settings}  # -tt -> where its flags and settings are


@dataclass(frozen=True)
class TrainCommand:
    """What train.py was asked for. `styled_share` in [0, 1] is the rival EEF's, 0 without it."""

    data: dict  # what `load_data` takes
    watermark: margin_settings.Watermark | EweWatermark | RsWatermark
    model_type: str
    width: int
    init: str | None
    training: TrainingSettings
    output: OutputSettings
    device: str
    select: str
    benign: tuple
    styled_share: float

    def facts(self, data: Data, network=None) -> SourceFacts:
        """What checkpoints and summary say of this training; `network` is a model from outside, whose layers count."""
        keeps_clean = self.watermark.keeps_clean_statistics
        if keeps_clean and network is not None:
            keeps_clean = bool(RunningStatistics(network, self.watermark.bn_stats).clean)
        return SourceFacts(
            model_type=self.model_type,
            width=self.width,
            dataset=data.name,
            classes=data.classes,
            train_size=len(data.train.labels),
            train_type=self.watermark.train_type,
            label_strategy=self.watermark.triggers.strategy,
            bn_stats=self.watermark.bn_stats,
            seed=self.training.seed,
            select=self.select,
            keeps_clean=keeps_clean,
            makes_triggers_later=self.watermark.makes_triggers_later,
        )


def train_command(argv=None) -> TrainCommand:
    """The settings of train.py; Refusal where flags do not go together."""
    flags = train_flags(argv)
    rival = RIVALS.get(flags.train_type)
    return TrainCommand(
        data=dict(dataset=flags.dataset, data_dir=flags.data_dir, train_size=flags.train_size,
                  skip_bad_images=flags.skip_bad_images, image_size=flags.image_size),
        watermark=rival.settings(flags) if rival else margin_settings.watermark_settings(flags),
        model_type=flags.model_type,
        width=flags.width,
        init=flags.init,
        training=training_settings(flags),
        output=OutputSettings(source_folder(flags, flags.model_type), vars(flags), flags.overwrite, "another -msg"),
        device=flags.device,
        select=flags.select,
        benign=tuple(flags.benign),
        styled_share=flags.embed_features,
    )


def train_flags(argv=None) -> argparse.Namespace:
    """The flags of train.py, checked. A rival's flags are in the help, and in the record, only with its `-tt`."""
    kind = _typed_train_type(argv)
    p = parser_of("Train a source with a watermark (or a benign model with -tt none).", "train.py")
    add_data_flags(p).add_argument("--train-size", type=COUNT, help="use this many training images (default: all)")
    group = p.add_argument_group("model")
    group.add_argument("-mt", "--model-type", type=models.architecture, default="res34", metavar="NAME",
                       help=ARCHITECTURE_HELP)
    group.add_argument("--width", type=COUNT, default=64, help="channels of the first stage; 64 is the published size")
    group.add_argument("--init", metavar="FILE",
                       help="start from the weights in FILE (a state dict, a checkpoint, .safetensors, or a run's "
                       "folder), with a new last layer if theirs has other classes (default: from random ones)")
    group = add_trigger_flags(p)
    add_train_type(group)
    margin_settings.add_watermark_flags(group)
    group = add_training_flags(p)
    group.add_argument("--stop-after", type=COUNT, metavar="E",
                       help="end after E of the -ep epochs, finished and reported; the rates are those of -ep")
    add_output_flags(p, "-d", "--dir")
    eef_settings.add_flags(p, shown=kind == "none")
    for name, rival in RIVALS.items():
        rival.add_flags(_adder(p, rival, shown=name == kind))
    p.set_defaults(**(RIVALS[kind].DEFAULTS if kind in RIVALS else {}))
    flags = p.parse_args(argv)
    if (flags.stop_after or 1) > flags.epoch:
        raise Refusal(f"--stop-after {flags.stop_after}: the run has only -ep {flags.epoch} epochs; pass at most that")
    if flags.bn_stats == "eval" and kind != "margin":
        raise Refusal(f"--bn-stats eval: -tt {kind} has no ascent that could run in eval mode; pass another")
    if flags.amp == "fp16" and kind in RIVALS:
        raise Refusal(f"--amp fp16: the gradients of -tt {kind} are not scaled for it; pass --amp bf16")
    if flags.eps is None:
        flags.eps = flags.steps * flags.step_size
    _refuse_foreign_flags(flags)
    if kind in RIVALS:
        RIVALS[kind].check_flags(flags)
    complete_watermark_flags(flags)
    if getattr(flags, f"{kind}_triggers", "shared") != "shared":
        flags.label_strategy = "single"
    return flags


def _typed_train_type(argv) -> str:
    """-tt alone, which decides what the help shows and which defaults hold."""
    p = Parser(prog="train.py", add_help=False, allow_abbrev=False)
    add_train_type(p)
    return p.parse_known_args(argv)[0].train_type


def _adder(parser, rival, shown: bool):
    """`add(flag, help, **options)` of a rival's flags: absent from the namespace unless its `-tt` sets the defaults."""
    group = parser.add_argument_group("the rival", rival.DESCRIPTION) if shown else parser

    def add(flag, text, **more):
        group.add_argument(flag, default=argparse.SUPPRESS, help=text if shown else argparse.SUPPRESS, **more)

    return add


def _refuse_foreign_flags(flags) -> None:
    for name, rival in RIVALS.items():
        if name != flags.train_type:
            for key in rival.DEFAULTS:
                if key.startswith(f"{name}_") and hasattr(flags, key):
                    raise Refusal(f"--{key.replace('_', '-')} is a flag of -tt {name}: leave it out or pass that")
