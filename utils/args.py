"""The flags of the three scripts, each declared once, and the checks that one flag's type cannot make."""

import argparse
import math
import re

import models
from utils import attacks, batchnorm, data, edit, ewe, losses, triggers
from utils.refuse import Parser, Refusal

TRAIN_TYPES = ("none", "base", "margin", "ewe", "rs")
# what a rival's authors set otherwise; the rest are flags that no other training has
DEFAULTS = {
    "ewe": {"epoch": 50, "lr": 1e-3, "weight_decay": 0.0, "ewe_epochs": 6.0, "ewe_ratio": 4.0, "ewe_factor": 1e5,
            "ewe_temperature": 1.0, "ewe_temperature_lr": 0.1, "ewe_target": 0, "ewe_source": "svhn:9",
            "ewe_triggers": "own", "ewe_steps": 10, "ewe_step_size": 0.01, "ewe_threshold": 0.1},
    "rs": {"epoch": 100, "lr": 0.05, "rs_sigma": 1.0, "rs_sigma_step": 0.05, "rs_draws": 100, "rs_warmup": 5,
           "rs_batch": 64, "rs_freeze_bn": False, "rs_triggers": "text", "rs_label": 4},
}


def _number(kind, low, high=math.inf, open_low=False):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        if not (low < value if open_low else low <= value) or not value <= high or not math.isfinite(value):
            bound = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    return parse


def _message(text):
    if "/" in text or "\0" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError("must not contain '/': it becomes part of a folder's name")
    return text


def _ewe_source(text):
    if not re.fullmatch(r"digits|svhn:[0-9]|[0-9]{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither svhn:DIGIT nor digits nor the number of a class")
    return text


# rates beyond float32's range would be an error of torch's
COUNT, POSITIVE, SHARE = _number(int, 1), _number(float, 0, 1e38, open_low=True), _number(float, 0, 1)
SEED, RADIUS = _number(int, 0, 2**31 - 1), _number(float, 0, 1e6)
CONFIDENCE = _number(float, 0, 1 - 1e-9, open_low=True)


def _parser(description: str, folder_flags) -> Parser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = Parser(description=description, formatter_class=formatter, allow_abbrev=False)
    p.add_argument(*folder_flags, dest="dir", default="experiments", help="folder of all runs")
    p.add_argument("-dt", "--dataset", default="cifar10", choices=data.NAMES, help="the source's data set")
    p.add_argument("--data-dir", default="data", help="folder of downloads, or of the images of -dt folder")
    p.add_argument("--skip-bad-images", action="store_true", help="-dt folder: go on without unreadable images")
    p.add_argument("-tt", "--train-type", default="margin", choices=TRAIN_TYPES,
                   help="none: no watermark (benign); base: triggers by ERM; margin: the paper's method; "
                   "ewe: Entangled Watermark Embedding; rs: randomised smoothing of the weights")
    p.add_argument("-nq", "--num-query", type=COUNT, default=100, help="number m of triggers")
    p.add_argument("-nm", "--num-mixup", type=COUNT, default=1, help="images averaged into one trigger")
    p.add_argument("-qt", "--query-type", type=_message, default="",
                   help="a word for the kind of triggers; enters the folder's name only")
    p.add_argument("-msg", "--message", type=_message, default="", help="tag of the source run's folder")
    p.add_argument("-ep", "--epoch", type=COUNT, default=200, help="epochs; the rate falls at 1/2 and 3/4 of them")
    p.add_argument("--batch-size", type=COUNT, default=128, help="images a step")
    p.add_argument("--lr", type=POSITIVE, default=0.1, help="initial learning rate")
    p.add_argument("--weight-decay", type=_number(float, 0, 1e38), default=1e-4, help="weight decay")
    p.add_argument("--width", type=COUNT, default=64, help="channels of the first stage; 64 is the published size")
    p.add_argument("--select", default="val", choices=("val", "last"),
                   help="checkpoint that is reported, and attacked: best on validation images, or the last")
    p.add_argument("--benign", nargs="+", default=[], metavar="RUN",
                   help="independently trained models (-tt none) to compare with: table rows and test T3")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--amp", action="store_true", help="bf16 autocast: faster, changes the result slightly")
    p.add_argument("--compile", action="store_true",
                   help="torch.compile the model: minutes to start, changes the result by rounding")
    p.add_argument("--no-tf32", dest="tf32", action="store_false",
                   help="CUDA: convolutions in full fp32: slower, changes the result by rounding")
    p.add_argument("--no-graph", dest="graph", action="store_false",
                   help="CUDA: launch every kernel of a step by itself: slower, same result")
    p.add_argument("--deterministic", action="store_true", help="bit-equal reruns on a GPU too, slower")
    p.add_argument("--seed", type=SEED, default=0, help="seed of everything but the split")
    p.add_argument("--overwrite", action="store_true", help="remove a run with other settings from the folder")
    return p


def train_args(argv=None):
    """Flags of train.py."""
    p = _parser("Train a source with a watermark (or a benign model with -tt none).", ("-d", "--dir"))
    p.add_argument("-mt", "--model-type", default="res34", choices=models.NAMES, help="architecture")
    p.add_argument("--train-size", type=COUNT, help="use this many training images (default: all)")
    p.add_argument("--embed-features", type=SHARE, default=0.0, metavar="SHARE",
                   help="replace this share of the training images by styled ones, for utils.verify eef (a rival "
                   "method: 0.1 with -tt none); --seed is then the style's secret")
    p.add_argument("-v", "--variable", type=_number(float, 0), default=0.1, help="weight of the trigger loss")
    p.add_argument("--reduction", default="joint", choices=losses.REDUCTIONS,
                   help="joint: weighted mean over all samples (official code); sum: Eq. 4 with lambda = -v")
    p.add_argument("--steps", type=COUNT, default=5, help="ascent steps K of -tt margin")
    p.add_argument("--step-size", type=_number(float, 0, 255), default=1.0, help="ascent step in 1/255")
    p.add_argument("--eps", type=_number(float, 0, 255), help="radius of the ball in 1/255 (default: K * step)")
    p.add_argument("--trigger-batch", type=_number(int, 2), default=25, help="triggers a step, drawn with replacement")
    p.add_argument("--bn-stats", default="paper", choices=batchnorm.MODES,
                   help="do trigger batches enter BatchNorm's running statistics: paper: yes, and clean ones are "
                   "kept beside; clean: no; shared: triggers are normalised with the clean batch")
    p.add_argument("--label-strategy", default="random", choices=triggers.STRATEGIES,
                   help="assigned label: random, or the most / least confident wrong one of --label-model")
    p.add_argument("--label-model", metavar="RUN", help="clean model for --label-strategy highest or lowest")
    _add_ewe(p)
    _add_rs(p)
    kind = p.parse_known_args(argv)[0].train_type
    p.set_defaults(**DEFAULTS.get(kind, {}))
    args = p.parse_args(argv)
    if args.eps is None:
        args.eps = args.steps * args.step_size
    foreign = [name for other, names in DEFAULTS.items() if other != kind for name in names
               if name.startswith(f"{other}_") and hasattr(args, name)]
    if foreign:
        name = foreign[0]
        raise Refusal(f"--{name.replace('_', '-')} is a flag of -tt {name.split('_')[0]}: leave it out or pass that")
    if kind in CHECKS:
        CHECKS[kind](args)
    if (args.label_strategy == "random") != (args.label_model is None):
        raise Refusal("--label-strategy highest or lowest needs --label-model RUN, a clean model; random takes none")
    if getattr(args, f"{kind}_triggers", "shared") != "shared":
        args.label_strategy = "single"
    return args


def _group(p: Parser, kind: str, text: str):
    """`add(flag, help, ...)` of a rival's flags: absent, and not recorded, where another training is asked for."""
    group = p.add_argument_group(f"-tt {kind}", text)
    return lambda flag, text, **more: group.add_argument(
        flag, default=argparse.SUPPRESS, help=f"{text} (default: {DEFAULTS[kind][flag[2:].replace('-', '_')]})", **more)


def _add_ewe(p: Parser) -> None:
    of = DEFAULTS["ewe"]
    add = _group(
        p, "ewe", f"phase 1: -ep {of['epoch']} epochs of plain training by Adam, --lr {of['lr']} to the end, "
        "--weight-decay 0; phase 2: the triggers are made; phase 3: normal and watermark batches; -v, --steps, "
        "--trigger-batch and their like are not used")
    add("--ewe-epochs", "length of phase 3: its watermark batches, in epochs' worth of batches",
        type=_number(float, 0, 1e4, open_low=True))
    add("--ewe-ratio", "normal batches to a watermark batch", type=_number(float, 0, 1e3))
    add("--ewe-factor", "weight of the SNNL of each layer", type=_number(float, 0, 1e38))
    add("--ewe-temperature", "T at the start; the SNNL's own temperature is 100 / T",
        type=_number(float, ewe.LOWEST, 1e38))
    add("--ewe-temperature-lr", "rate of the descent on T", type=_number(float, 0, 1e38))
    add("--ewe-target", "number of the class to entangle with", type=_number(int, 0))
    add("--ewe-source", "what becomes triggers: a digit of SVHN (the authors' class 8 is svhn:9), digits: the nines of "
        "scikit-learn, or the number of one of the data set's own classes, with a patch", type=_ewe_source)
    add("--ewe-triggers", "own: made in phase 2; shared: those of -tt margin under their labels, not optimised, beside "
        "images of all classes", choices=("own", "shared"))
    add("--ewe-steps", "rounds of phase 2 (the authors: 100 on CIFAR-100)", type=COUNT)
    add("--ewe-step-size", "its step; pixels are in [0, 1]", type=SHARE)
    add("--ewe-threshold", "share of triggers that the model of phase 1 may give the target class", type=SHARE)


def _check_ewe(args) -> None:
    if args.dataset == "folder" and args.ewe_triggers == "own" and args.ewe_source.startswith("svhn"):
        raise Refusal(f"--ewe-source {args.ewe_source}: --data-dir is the folder of your own images, not of SVHN; pass "
                      "--ewe-source digits, or the number of one of your classes")
    if args.compile:
        raise Refusal("--compile: -tt ewe looks at hidden layers, which compiling hides; leave it out")
    if args.bn_stats == "shared":
        raise Refusal("--bn-stats shared: -tt ewe has watermark batches of their own; pass paper or clean")
    if args.ewe_triggers == "own" and (args.num_mixup > 1 or args.label_strategy != "random"):
        raise Refusal("-nm and --label-strategy: -tt ewe makes its triggers itself and labels them --ewe-target; leave "
                      "them out, or pass --ewe-triggers shared")


def _add_rs(p: Parser) -> None:
    of = DEFAULTS["rs"]
    add = _group(
        p, "rs", f"-ep {of['epoch']} and --lr {of['lr']} by default; momentum 0.9; the rate falls by 10 after 30, 60 "
        "and 90 percent of the epochs; the authors train on half of the images: pass --train-size for that")
    add("--rs-sigma", "largest noise on the weights", type=_number(float, 0, 1e6))
    add("--rs-sigma-step", "distance of the noise levels from 0 to --rs-sigma",
        type=_number(float, 0, 1e6, open_low=True))
    add("--rs-draws", "noisy gradients a level: the time of a robust pass is as many times the levels, and a signal "
        "waits for its end", type=COUNT)
    add("--rs-warmup", "last epoch, counted from 0, without a robust pass", type=_number(int, 0))
    add("--rs-batch", "triggers of a robust pass's batch; with fewer triggers all of them", type=_number(int, 2))
    add("--rs-label", "label of all triggers text and noise, a number from 0", type=_number(int, 0))
    add("--rs-freeze-bn", "keep the noise out of BatchNorm's running statistics: for epochs of fewer than about 60 "
        "steps", action="store_true")
    add("--rs-triggers", "text: a word in a corner; noise: one noise pattern; shared: the triggers and random labels "
        "of -tt margin", choices=("text", "noise", "shared"))


def _check_rs(args) -> None:
    if args.rs_warmup >= args.epoch - 1:
        raise Refusal(f"--rs-warmup {args.rs_warmup}: -ep {args.epoch} leaves no epoch with a robust pass; pass -ep "
                      f"{args.rs_warmup + 2} or more, or a smaller --rs-warmup")
    if args.bn_stats != "paper":
        raise Refusal(f"--bn-stats {args.bn_stats}: -tt rs trains on its triggers as on any image; leave it out")
    count = args.rs_sigma / args.rs_sigma_step
    if count > 10_000 or abs(count - round(count)) > 1e-6 or (args.rs_sigma and not round(count)):
        raise Refusal(f"--rs-sigma {args.rs_sigma:g} is no multiple of --rs-sigma-step {args.rs_sigma_step:g}, or one "
                      "of more than 10,000: pass a step that divides it")
    if args.rs_triggers != "shared" and (args.num_mixup > 1 or args.label_strategy != "random"):
        raise Refusal(f"--rs-triggers {args.rs_triggers} are single images with one label for all: leave -nm and "
                      "--label-strategy out, or pass --rs-triggers shared")


CHECKS = {"ewe": _check_ewe, "rs": _check_rs}


def _attack_parser(description):
    p = _parser(description, ("-e", "--exp-name", "-d", "--dir"))
    p.add_argument("-dmt", "--model-type", default="res18", choices=models.NAMES, help="the surrogate's architecture")
    p.add_argument("-tmt", "--teacher-model-type", default="res34", choices=models.NAMES,
                   help="the source's architecture")
    p.add_argument("-admsg", "--additional-message", type=_message, default="", help="tag of the attack's folder")
    p.add_argument("--teacher-bn", default="paper", choices=("paper", "clean"),
                   help="which of the source's two checkpoints is stolen: with the paper's or clean statistics")
    p.add_argument("--train-size", type=COUNT, help="use this many images (default: as many as the source)")
    return p


def distill_args(argv=None):
    """Flags of distill.py."""
    p = _attack_parser("Distil a surrogate from a source with true labels and soft targets (Eq. 6).")
    p.add_argument("-a", "--alpha", type=SHARE, default=0.7, help="weight of the source's answers")
    p.add_argument("-t", "--temp", type=POSITIVE, default=1.0, help="temperature of both softmaxes")
    args = p.parse_args(argv)
    args.dataset_source, args.data_dir_source = args.dataset, args.data_dir
    return args


def extraction_args(argv=None):
    """Flags of extraction.py."""
    p = _attack_parser("Extract a surrogate from a source through its answers (Eqs. 2, 5 and 7), or edit a copy of it.")
    p.set_defaults(model_type=None)
    p.add_argument("-at", "--attack", default="soft", choices=(*attacks.EXTRACTIONS, *attacks.REMOVALS),
                   help="soft: its probabilities; hard: its labels; reg: probabilities and true labels; margin: "
                   "probabilities at the least sure point of a ball (Eq. 7); finetune, fineprune, prune and quantize "
                   "start from the model itself")
    p.add_argument("-dsrc", "--dataset-source", choices=data.NAMES,
                   help="data set of the thief's images (default: the source's own)")
    p.add_argument("--data-dir-source", help="folder of the thief's images (default: --data-dir)")
    p.add_argument("-a", "--alpha", type=SHARE, default=0.3, help="-at reg: weight of the source's answers")
    p.add_argument("--steps", type=COUNT, default=5, help="-at margin: ascent steps")
    p.add_argument("--step-size", type=_number(float, 0, 255), default=1.0, help="-at margin: step in 1/255")
    p.add_argument("--eps", type=_number(float, 0, 255), help="-at margin: radius in 1/255 (default: steps * step)")
    p.add_argument("--on", type=_message, default="", metavar="FOLDER",
                   help="attacks that start from a model: this finished attack below the source's folder (for example "
                   "extraction); default: the source")
    p.add_argument("--finetune", default="ftal", choices=tuple(attacks.FINETUNES),
                   help="-at finetune, fineprune: all or last layer (al, ll), the last kept or re-initialised (ft, rt)")
    p.add_argument("--criterion", default="activation", choices=tuple(edit.CRITERIA),
                   help="-at prune, fineprune: channels of least activation in each layer, or smallest weights of all")
    p.add_argument("--ratios", type=SHARE, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
                   help="-at prune: pruned shares, a row each")
    p.add_argument("--ratio", type=SHARE, default=0.5, help="-at fineprune: pruned share")
    p.add_argument("--bits", type=_number(int, 2, 16), nargs="+", default=[8, 4, 2],
                   help="-at quantize: bits of a weight, a row each")
    args = p.parse_args(argv)
    edits = args.attack in attacks.REMOVALS
    if args.on and not edits:
        raise Refusal(f"--on {args.on}: -at {args.attack} starts from random weights; --on is for an attack that edits")
    args.model_type = args.model_type or ("" if edits else "res18")  # an edited model keeps its architecture
    args.dataset_source = args.dataset_source or args.dataset
    args.data_dir_source = args.data_dir_source or args.data_dir
    if args.eps is None:
        args.eps = args.steps * args.step_size
    return args
