"""EEF's flag of train.py, which puts styled images into the training set."""

import argparse

from utils.system.refusals import SHARE


def add_flags(parser: argparse.ArgumentParser, shown: bool) -> None:
    """Declare --embed-features. The method is meant for `-tt none`; `shown` says whether --help lists the flag."""
    group = parser.add_argument_group("the rival EEF") if shown else parser
    text = ("replace this share of the training images by styled ones, for utils.verify eef (0.1 with -tt none); "
            "--seed is then the style's secret")
    group.add_argument("--embed-features", type=SHARE, default=0.0, metavar="SHARE",
                       help=text if shown else argparse.SUPPRESS)
