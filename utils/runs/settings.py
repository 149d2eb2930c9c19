"""Where a run is written: settings and the flags that set them."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from utils.system.refusals import folder_tag


@dataclass(frozen=True)
class OutputSettings:
    """The run's folder, whether an old run in it is removed, and the record of all flags that `run.json` keeps.

    `tag_flag` is the flag whose value gives the run another folder; error messages name it.
    """

    folder: Path
    record: dict
    overwrite: bool
    tag_flag: str


def add_output_flags(parser: argparse.ArgumentParser, *folder_flags):
    """Declare the flags of a run's folder, `folder_flags` for the folder of all runs; returns their group."""
    p = parser.add_argument_group("output and report")
    p.add_argument(*folder_flags, dest="dir", default="experiments", help="folder of all runs")
    p.add_argument("-msg", "--message", type=folder_tag, default="", help="tag of the source run's folder")
    p.add_argument("-qt", "--query-type", type=folder_tag, default="",
                   help="a word for the kind of triggers; enters the folder's name only")
    p.add_argument("--overwrite", action="store_true", help="remove a run with other settings from the folder")
    p.add_argument("--select", default="val", choices=("val", "last"),
                   help="checkpoint to report and to attack: best on validation images, or last")
    p.add_argument("--benign", nargs="+", default=[], metavar="RUN",
                   help="independent models (-tt none) to compare with: table rows and test T3")
    return p


def source_folder(flags, model_type: str) -> Path:
    """The folder of the source's run that the flags name; `model_type` is the source's architecture."""
    model_type = model_type.replace(":", "-")  # which many programs take for something else in a file's name
    mixup = [flags.query_type, flags.num_mixup] if flags.query_type else None
    name = run_name(flags.dataset, model_type, flags.train_type, flags.num_query, flags.message, mixup)
    return Path(flags.dir) / name


def run_name(dataset: str, model_type: str, train_type: str, m: int, message: str, mixup=None) -> str:
    """The official folder name: dataset_model[_querytype]_traintype_m[_mixup]_message.

    `mixup` is None, or the pair (query type, images of a trigger).
    """
    if mixup:
        parts = [dataset, model_type, mixup[0], train_type, m, mixup[1]]
    else:
        parts = [dataset, model_type, train_type, m]
    return "_".join(map(str, [*parts, message]))
