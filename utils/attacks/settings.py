"""The flags of distill.py and extraction.py, and the attacks that they describe."""

import argparse
from functools import partial

import models
from utils.attacks.editing import FineTuning, Sweep
from utils.attacks.losses import EXTRACTIONS, distill_loss, extraction_loss
from utils.attacks.objectives import FINETUNES, REMOVALS
from utils.attacks.pruning import CRITERIA
from utils.attacks.surrogate import Extraction
from utils.data.sets import DATASETS
from utils.runs.architecture import ARCHITECTURE_HELP
from utils.runs.checkpoints import STATISTICS
from utils.system.refusals import COUNT, POSITIVE, SHARE, Refusal, folder_tag, number


def add_attack_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of both attack scripts."""
    p = parser.add_argument_group("source and surrogate")
    p.add_argument("-tmt", "--teacher-model-type", type=models.architecture, default="res34", metavar="NAME",
                   help="the source's architecture")
    p.add_argument("--teacher-bn", default="paper", choices=STATISTICS,
                   help="BatchNorm statistics of the stolen model: the paper's, clean ones, or the paper's in the "
                   "first or last half of the layers and clean ones in the others")
    p.add_argument("-dmt", "--model-type", type=models.architecture, default="res18", metavar="NAME",
                   help=f"the surrogate's {ARCHITECTURE_HELP} (res18; attacks that start from a model keep theirs)")
    p.add_argument("--adam", type=POSITIVE, metavar="RATE",
                   help="train the surrogate with Adam at this constant rate (EWE's authors: 1e-3), not with SGD at "
                   "--lr")
    p.add_argument("--width", type=COUNT, default=64, help="channels of the first stage; 64 is the published size")
    p.add_argument("--train-size", type=COUNT, help="use this many images (default: as many as the source)")
    p.add_argument("-admsg", "--additional-message", type=folder_tag, default="", help="tag of the attack's folder")


def add_distillation_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of distill.py alone."""
    p = parser.add_argument_group("attack (Eq. 6)")
    p.add_argument("-a", "--alpha", type=SHARE, default=0.7, help="weight of the source's answers")
    p.add_argument("-t", "--temp", type=POSITIVE, default=1.0, help="temperature of both softmaxes")


def add_extraction_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of extraction.py alone."""
    parser.set_defaults(model_type=None)  # res18, or the model's own for an attack that edits
    p = parser.add_argument_group("attack (Eqs. 2, 5 and 7)")
    p.add_argument("-at", "--attack", default="soft", choices=(*EXTRACTIONS, *REMOVALS),
                   help="soft: its probabilities; hard: its labels; reg: probabilities and true labels; margin: "
                   "probabilities at the least sure point of a ball (Eq. 7); finetune, fineprune, prune and quantize "
                   "start from the model itself")
    p.add_argument("-dsrc", "--dataset-source", choices=DATASETS,
                   help="data set of the thief's images (default: the source's own)")
    p.add_argument("--data-dir-source", help="folder of the thief's images (default: --data-dir)")
    p.add_argument("-a", "--alpha", type=SHARE, default=0.3, help="-at reg: weight of the source's answers")
    p.add_argument("--steps", type=COUNT, default=5, help="-at margin: ascent steps")
    p.add_argument("--step-size", type=number(float, 0, 255), default=1.0, help="-at margin: step in 1/255")
    p.add_argument("--eps", type=number(float, 0, 255), help="-at margin: radius in 1/255 (default: steps * step)")
    p = parser.add_argument_group("attacks that start from a model")
    p.add_argument("--on", type=folder_tag, default="", metavar="FOLDER",
                   help="the finished attack below the source's folder to start from, for example extraction; "
                   "default: the source")
    p.add_argument("--finetune", default="ftal", choices=tuple(FINETUNES),
                   help="-at finetune, fineprune: all or last layer (al, ll), the last kept or re-initialised (ft, rt)")
    p.add_argument("--criterion", default="activation", choices=tuple(CRITERIA),
                   help="-at prune, fineprune: channels of least activation in each layer, or smallest weights of all")
    p.add_argument("--ratios", type=SHARE, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
                   help="-at prune: pruned shares, a row each")
    p.add_argument("--ratio", type=SHARE, default=0.5, help="-at fineprune: pruned share")
    p.add_argument("--bits", type=number(int, 2, 16), nargs="+", default=[8, 4, 2],
                   help="-at quantize: bits of a weight, a row each")


def complete_distillation_flags(flags) -> None:
    """Fill in what distill.py has no flag for: the thief's images are the source's."""
    flags.dataset_source, flags.data_dir_source = flags.dataset, flags.data_dir


def complete_extraction_flags(flags) -> None:
    """Fill in the defaults that depend on other flags; Refusal for flags that do not go together."""
    edits = flags.attack in REMOVALS
    if flags.on and not edits:
        raise Refusal(f"--on {flags.on}: -at {flags.attack} starts from random weights; --on is for an attack that "
                      "edits")
    if flags.adam and edits:
        raise Refusal(f"--adam {flags.adam:g}: -at {flags.attack} trains no new surrogate; leave it out")
    flags.model_type = flags.model_type or ("" if edits else "res18")  # an edited model keeps its architecture
    flags.dataset_source = flags.dataset_source or flags.dataset
    flags.data_dir_source = flags.data_dir_source or flags.data_dir
    if flags.eps is None:
        flags.eps = flags.steps * flags.step_size


def distillation(flags) -> Extraction:
    """The attack of distill.py (Eq. 6)."""
    loss = partial(distill_loss, alpha=flags.alpha, temperature=flags.temp)
    return Extraction("distill", loss, True, flags.model_type, flags.width, adam=flags.adam)


def extraction(flags) -> Extraction | FineTuning | Sweep:
    """The attack of extraction.py that `-at` names."""
    if flags.attack in ("prune", "quantize"):
        return Sweep(flags.attack, flags.criterion, tuple(flags.ratios), tuple(flags.bits), flags.on, flags.model_type)
    if flags.attack in ("finetune", "fineprune"):
        ratio = flags.ratio if flags.attack == "fineprune" else None
        return FineTuning(flags.attack, flags.finetune, flags.criterion, ratio, flags.on, flags.model_type)
    loss, needs_labels = extraction_loss(flags.attack, flags.alpha)
    steps = flags.steps if flags.attack == "margin" else 0
    return Extraction(flags.attack, loss, needs_labels, flags.model_type, flags.width, steps, flags.step_size / 255,
                      flags.eps / 255, flags.adam)
