"""The flags of train.py, distill.py and extraction.py: declared here, checked together, and recorded in `run.json`.

Those of the data stand beside the data sets, those that choose triggers beside these, because `utils.verify prepare`
has them too, and a rival's beside the rival.
"""

import argparse
import shutil
import sys
from pathlib import Path

import models
from utils.attacks.editing import CRITERIA, FINETUNES, REMOVALS
from utils.attacks.stealing import EXTRACTIONS
from utils.data.sets import DATASETS, add_data_flags
from utils.rivals import embedded_features, ewe, randomized_smoothing
from utils.runs.checkpoints import STATISTICS
from utils.runs.networks import ARCHITECTURE_HELP
from utils.system.machine import AMP, add_device_flag
from utils.system.refusals import COUNT, POSITIVE, SEED, SHARE, Parser, Refusal, folder_tag, number
from utils.watermark.batchnorm import BN_MODES
from utils.watermark.carriers import count_or_share
from utils.watermark.margin import REDUCTIONS
from utils.watermark.prepared import take_prepared_flags
from utils.watermark.triggers import add_label_flags, add_trigger_flags, complete_label_flags

RIVALS = {"ewe": ewe, "rs": randomized_smoothing}  # -tt -> where its flags, triggers and objective are made
TRAIN_TYPES = ("none", "base", "margin", *RIVALS)


class ShortHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Help in which most flags take one line: one name for a flag's value, and no default that says nothing."""

    def _format_action_invocation(self, action):
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = action.metavar or ("" if action.choices else action.option_strings[-1].lstrip("-").upper()[:1])
        several = " ..." if action.nargs == "+" else ""
        return f"{', '.join(action.option_strings)} {value}{several}".rstrip()

    def _get_help_string(self, action):
        text = action.help
        if action.choices and not all(str(choice) in text for choice in action.choices):
            text = f"{text}: {', '.join(map(str, action.choices))}"
        if isinstance(action.default, bool | None) or action.default in ("", [], argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def parser_of(description: str, script: str) -> Parser:
    width = min(110, shutil.get_terminal_size().columns - 2)
    formatter = lambda prog: ShortHelp(prog, max_help_position=32, width=width)
    return Parser(prog=script, usage=f"python {script} [flags]", description=description, formatter_class=formatter)


# ---- train.py ----


def train_flags(argv=None) -> argparse.Namespace:
    """The flags of train.py; Refusal where they do not go together.

    A rival's flags are in the help, and in the record, only with its `-tt`.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = Parser(prog="train.py", add_help=False)
    _add_train_type(first)
    kind = first.parse_known_args(argv)[0].train_type  # it decides what the help shows and which defaults hold
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
    _add_train_type(group)
    group.add_argument("-v", "--variable", type=number(float, 0), default=0.1, help="weight of the trigger loss")
    group.add_argument("--reduction", default="joint", choices=REDUCTIONS,
                       help="joint: weighted mean over all samples (official code); sum: Eq. 4 with lambda = -v")
    _add_ascent_flags(group, "-tt margin")
    group.add_argument("--trigger-batch", type=number(int, 2, 10**9), default=25,
                       help="triggers a step, with replacement")
    group.add_argument("--bn-stats", default="paper", choices=BN_MODES,
                       help="BatchNorm's running statistics: paper: trigger batches enter, and a second set without "
                       "them is saved too; clean: they stay out; shared: triggers (of ewe: watermark batches) are "
                       "normalised with a clean batch; eval: paper, with the ascent of -tt margin in eval mode")
    add_label_flags(group)
    group.add_argument("--carriers", type=count_or_share, metavar="N",
                       help="train the N training images nearest to each trigger, in --label-model's features, "
                       "under its label, so that copies see the mark; costs accuracy; below 1: a share of all "
                       "training images (default: none)")
    group.add_argument("--prepared", metavar="DIR",
                       help="take the triggers' images from `python -m utils.verify prepare DIR`; needs --beacon")
    group.add_argument("--beacon", metavar="HEX", help="public randomness, known only after the preparation, that "
                       "draws the labels of --prepared")
    group = _add_training_flags(p)
    group.add_argument("--stop-after", type=COUNT, metavar="E",
                       help="end after E of the -ep epochs, finished and reported; the rates are those of -ep")
    _add_output_flags(p, "-d", "--dir")
    embedded_features.add_flags(p, shown=kind == "none")
    if rival := RIVALS.get(kind):
        group = p.add_argument_group("the rival", rival.DESCRIPTION)
        rival.add_flags(lambda flag, text, **more: group.add_argument(flag, help=text, **more))
        p.set_defaults(**rival.DEFAULTS)
    for word in argv:
        if (name := word.removeprefix("--").partition("-")[0]) in RIVALS and name != kind and word.startswith("--"):
            raise Refusal(f"{word.partition('=')[0]} is a flag of -tt {name}: leave it out or pass that")
    flags = p.parse_args(argv)
    if (flags.stop_after or 1) > flags.epoch:
        raise Refusal(f"--stop-after {flags.stop_after}: the run has only -ep {flags.epoch} epochs; pass at most that")
    if flags.stop_after and rival:
        raise Refusal(f"--stop-after {flags.stop_after}: -tt {kind} has phases that a stop would cut off; leave it out")
    if flags.bn_stats == "eval" and kind != "margin":
        raise Refusal(f"--bn-stats eval: -tt {kind} has no ascent that could run in eval mode; pass another")
    if flags.amp == "fp16" and rival:
        raise Refusal(f"--amp fp16: the gradients of -tt {kind} are not scaled for it; pass --amp bf16")
    if flags.eps is None:
        flags.eps = flags.steps * flags.step_size
    if rival:
        if flags.num_mixup > 1 or flags.label_strategy != "random" or flags.trigger_strategy:
            raise Refusal(f"-nm, --label-strategy and --trigger-strategy: -tt {kind} makes its triggers itself, all of "
                          "one label; leave them out")
        rival.check_flags(flags)
    take_prepared_flags(flags)
    for name in ("carriers", "prepared"):
        if getattr(flags, name) and kind not in ("base", "margin"):
            raise Refusal(f"--{name} is for -tt base and margin: leave it out with -tt {kind}")
    if flags.label_strategy == "runners-up" and flags.carriers:
        raise Refusal("--label-strategy runners-up goes without --carriers: its triggers are training images, which "
                      "carry the mark already")
    if not flags.prepared:
        complete_label_flags(flags)
    elif bool(flags.carriers) != (flags.label_model is not None):
        raise Refusal("--carriers needs --label-model RUN, and with --prepared nothing else does")
    if rival:
        flags.label_strategy = "single"
    return flags


# ---- distill.py and extraction.py ----


def distill_flags(argv=None) -> argparse.Namespace:
    """The flags of distill.py; the thief's images are the source's, and the attack is "distill"."""
    p = _attack_parser("Train a surrogate on a source's probabilities and on true labels (Eq. 6).", "distill.py")
    group = p.add_argument_group("attack (Eq. 6)")
    group.add_argument("-a", "--alpha", type=SHARE, default=0.7, help="weight of the source's answers")
    group.add_argument("-t", "--temp", type=POSITIVE, default=1.0, help="temperature of both softmaxes")
    _add_training_flags(p)
    _add_output_flags(p, "-e", "--exp-name", "-d", "--dir")
    flags = p.parse_args(argv)
    flags.dataset_source, flags.data_dir_source = flags.dataset, flags.data_dir
    flags.attack = "distill"
    return flags


READ_BY = {  # flag of extraction.py: the attacks that read it
    "alpha": ("reg",), "finetune": ("finetune", "fineprune"), "criterion": ("prune", "fineprune"),
    "ratios": ("prune",), "ratio": ("fineprune",), "bits": ("quantize",), "steps": ("margin", "adversarial"),
    "step_size": ("margin", "adversarial"), "eps": ("margin", "adversarial"),
}


def extraction_flags(argv=None) -> argparse.Namespace:
    """The flags of extraction.py; Refusal where they do not go together."""
    p = _attack_parser("Extract a surrogate from a source through its answers, or edit a copy of it.", "extraction.py")
    p.set_defaults(model_type=None)  # res18, or the model's own for an attack that edits
    group = p.add_argument_group("attack (Eqs. 2, 5 and 7)")
    group.add_argument("-at", "--attack", default="soft", choices=(*EXTRACTIONS, *REMOVALS),
                       help="soft: its probabilities; hard: its labels; reg: probabilities and true labels; smooth: "
                       "smoothed labels; margin: probabilities at the least sure point of a ball (Eq. 7); adversarial: "
                       "probabilities of an image for its worst neighbour; finetune, fineprune, prune and "
                       "quantize start from the model itself")
    group.add_argument("-dsrc", "--dataset-source", choices=DATASETS,
                       help="data set of the thief's images (default: the source's own)")
    group.add_argument("--data-dir-source", help="folder of the thief's images (default: --data-dir)")
    group.add_argument("-a", "--alpha", type=SHARE, default=0.3, help="-at reg: weight of the source's answers")
    _add_ascent_flags(group, "-at margin, adversarial")
    group = p.add_argument_group("attacks that start from a model")
    group.add_argument("--on", type=folder_tag, default="", metavar="FOLDER",
                       help="the finished attack below the source's folder to start from, for example extraction; "
                       "default: the source")
    group.add_argument("--finetune", default="ftal", choices=tuple(FINETUNES),
                       help="-at finetune, fineprune: all or last layer (al, ll), the last kept or re-initialised "
                       "(ft, rt); shift: on the model's own labels from shifted weights; wrk: with images pushed over "
                       "the boundary under random labels")
    group.add_argument("--criterion", default="activation", choices=CRITERIA,
                       help="-at prune, fineprune: activation: the least active channels of each layer before an "
                       "activation function; magnitude: the smallest of all weights")
    group.add_argument("--ratios", type=SHARE, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
                       help="-at prune: pruned shares, a row each")
    group.add_argument("--ratio", type=SHARE, default=0.5, help="-at fineprune: pruned share")
    group.add_argument("--bits", type=number(int, 2, 16), nargs="+", default=[8, 4, 2],
                       help="-at quantize: bits of a weight, a row each")
    _add_training_flags(p)
    _add_output_flags(p, "-e", "--exp-name", "-d", "--dir")
    flags = p.parse_args(argv)
    edits = flags.attack in REMOVALS
    if flags.on and not edits:
        raise Refusal(f"--on {flags.on}: -at {flags.attack} starts from random weights; --on is for an attack that "
                      "edits")
    if flags.on and flags.teacher_bn != "paper":
        raise Refusal(f"--teacher-bn {flags.teacher_bn}: --on {flags.on} has statistics of its own; leave it out")
    for name, readers in READ_BY.items():
        if flags.attack not in readers and getattr(flags, name) != p.get_default(name):
            raise Refusal(f"--{name.replace('_', '-')}: -at {flags.attack} does not read it; leave it out, or pass "
                          f"-at {' or '.join(readers)}")
    if flags.adam and edits:
        raise Refusal(f"--adam {flags.adam:g}: -at {flags.attack} trains no new surrogate; leave it out")
    flags.model_type = flags.model_type or ("" if edits else "res18")  # an edited model keeps its architecture
    flags.dataset_source = flags.dataset_source or flags.dataset
    kinds = {flags.dataset, flags.dataset_source}
    if len(kinds) > 1 and "folder" in kinds and "digits" not in kinds and flags.data_dir_source is None:
        raise Refusal(f"-dsrc {flags.dataset_source}: of -dt {flags.dataset} the images lie elsewhere than in "
                      f"--data-dir {flags.data_dir}; name their folder by --data-dir-source")
    flags.data_dir_source = flags.data_dir_source or flags.data_dir
    if flags.eps is None:
        flags.eps = flags.steps * flags.step_size
    return flags


def _attack_parser(description: str, script: str) -> Parser:
    p = parser_of(description, script)
    add_data_flags(p)
    _add_train_type(add_trigger_flags(p))
    group = p.add_argument_group("source and surrogate")
    group.add_argument("-tmt", "--teacher-model-type", type=models.architecture, default="res34", metavar="NAME",
                       help="the source's architecture")
    group.add_argument("--teacher-bn", default="paper", choices=STATISTICS,
                       help="BatchNorm statistics of the stolen model: the paper's, or clean ones")
    group.add_argument("-dmt", "--model-type", type=models.architecture, default="res18", metavar="NAME",
                       help=f"the surrogate's {ARCHITECTURE_HELP}")
    group.add_argument("--adam", type=POSITIVE, metavar="RATE",
                       help="train the surrogate with Adam at this constant rate (EWE's authors: 1e-3), not with SGD "
                       "at --lr")
    group.add_argument("--width", type=COUNT,
                       help="channels of the surrogate's first stage (default: the source's, or 64 of a network from "
                       "outside)")
    group.add_argument("--train-size", type=COUNT,
                       help="use this many images (default: as many as the source; of other data all)")
    group.add_argument("-admsg", "--additional-message", type=folder_tag, default="",
                       help="tag of the attack's folder")
    return p


# ---- flags of all three ----


def _add_train_type(parser) -> None:
    parser.add_argument("-tt", "--train-type", default="margin", choices=TRAIN_TYPES,
                        help="none: no watermark (benign); base: triggers by ERM; margin: the paper's method; rivals: "
                        "ewe, rs (their flags: train.py -tt ewe --help)")


def _add_ascent_flags(group, of: str) -> None:
    group.add_argument("--steps", type=COUNT, default=5, help=f"{of}: ascent steps K")
    group.add_argument("--step-size", type=number(float, 0, 255), default=1.0, help=f"{of}: ascent step in 1/255")
    group.add_argument("--eps", type=number(float, 0, 255), help=f"{of}: radius in 1/255 (default: K * step)")


def _add_training_flags(parser):
    """Declare the flags of training and machine; returns the group of the first."""
    training = p = parser.add_argument_group("training")
    p.add_argument("-ep", "--epoch", type=COUNT, default=200, help="epochs; the rate falls at 1/2 and 3/4 of them")
    p.add_argument("--batch-size", type=COUNT, default=128, help="images a step")
    p.add_argument("--lr", type=POSITIVE, default=0.1, help="initial learning rate")
    p.add_argument("--weight-decay", type=number(float, 0, 1e38), default=1e-4, help="weight decay")
    p.add_argument("--seed", type=SEED, default=0,
                   help="seed of all random numbers, but of the split's and of what --prepared fixed")
    p.add_argument("--no-crop", action="store_true", help="do not crop training images at random")
    p.add_argument("--no-flip", action="store_true", help="do not mirror training images, for data of which a mirrored "
                   "image is another thing (of digits none is mirrored)")
    p = parser.add_argument_group("machine")
    add_device_flag(p)
    p.add_argument("--amp", nargs="?", const="bf16", choices=tuple(AMP), help="autocast: faster, changes the result "
                   "slightly; bf16, or fp16, which is faster on NVIDIA GPUs (--amp alone: bf16)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model: changes the result by rounding")
    p.add_argument("--no-tf32", dest="tf32", action="store_false",
                   help="CUDA: convolutions in full fp32: slower, changes the result by rounding")
    p.add_argument("--no-graph", dest="graph", action="store_false",
                   help="CUDA: no recorded graph of a step: slower, same result")
    p.add_argument("--deterministic", action="store_true", help="bit-equal reruns on a GPU too, slower")
    return training


def _add_output_flags(parser, *folder_flags) -> None:
    p = parser.add_argument_group("output and report")
    p.add_argument(*folder_flags, dest="dir", default="experiments", help="folder of all runs")
    p.add_argument("-msg", "--message", type=folder_tag, default="", help="tag of the source run's folder")
    p.add_argument("-qt", "--query-type", type=folder_tag, default="",
                   help="a word in the source folder's name, followed by -nm")
    p.add_argument("--overwrite", action="store_true", help="remove the run in the folder and begin anew")
    p.add_argument("--select", default="val", choices=("val", "last"),
                   help="checkpoint to report: best on validation images, or last; of an attack, to steal too")
    p.add_argument("--benign", nargs="+", default=[], metavar="RUN",
                   help="independent models (-tt none) to compare with: table rows and test T3")


def source_folder(flags, model_type: str) -> Path:
    """The run of a source of this architecture, by its official name: dataset_model[_kind]_method_m[_mixup]_message."""
    model_type = model_type.replace(":", "-")  # which many programs take for something else in a file's name
    kind, mixup = ([flags.query_type], [flags.num_mixup]) if flags.query_type else ([], [])
    parts = [flags.dataset, model_type, *kind, flags.train_type, flags.num_query, *mixup, flags.message]
    return Path(flags.dir) / "_".join(map(str, parts))
