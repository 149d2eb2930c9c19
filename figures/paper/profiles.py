"""The sizes in which tables and figures can be made: the paper's own, small runs on a CPU, and a smoke test.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

import shlex
from typing import NamedTuple


class Profile(NamedTuple):
    """Settings of all runs of a profile; flags are those of the three scripts.

    flags      of every run
    watermark  further flags of watermarked sources
    m          number of triggers
    finetune   epochs of fine-tuning (Table 9)
    other      the thief's other data sets, {name in the paper: -dsrc}
    wide       whether the rows for CIFAR-100 are made
    rivals     {-tt of a rival, or (-tt, data set): flags in place of `watermark`}
    judged     {command of utils.verify that tests a rival: its flags}
    styled     flags of EEF's victim
    K, sizes, weights  ascent steps, numbers of triggers and weights lambda of Figure 6
    alphas     weights alpha of distillation in Figure 4
    controls   whether Table 2 gets rows that the paper has not: ERM and clean BatchNorm statistics
    """

    dataset: str
    flags: str
    watermark: str
    model: str
    m: int
    seeds: tuple
    finetune: int
    other: dict
    wide: bool
    rivals: dict
    judged: dict
    styled: str = "--embed-features 0.1"
    K: tuple = (1, 3, 5, 8)
    sizes: tuple = (25, 50, 100, 200)
    weights: tuple = (0.25, 0.5, 1, 2, 4)
    alphas: tuple = (0.1, 0.3, 0.5, 0.7, 0.9)
    controls: bool = False

    @property
    def data_dir(self) -> str | None:
        """The folder of images that `flags` name, if any."""
        words = shlex.split(self.flags)
        return words[words.index("--data-dir") + 1] if "--data-dir" in words else None


PROFILES = {
    "paper": Profile("cifar10", "", "", "res34", 100, (0, 1, 2), 100, {"SVHN": "svhn", "CIFAR-100": "cifar100"}, True,
                     {"ewe": "", "rs": "", ("ewe", "cifar100"): "-ep 100 --ewe-epochs 8 --ewe-ratio 15 "
                      "--ewe-temperature-lr 0.01 --ewe-steps 100"}, {"di": "", "eef": ""}, controls=True),
    "small": Profile("folder", "--data-dir data/cifar10-jpeg --width 16 --train-size 16000 -ep 14 --amp --device cpu",
                     "--reduction sum -v 0.1", "res18", 50, (0, 1, 2), 7, {}, False,
                     {"ewe": "-ep 8 --ewe-epochs 5 --ewe-source digits --bn-stats shared",
                      "rs": "-ep 100 --rs-draws 10 --rs-freeze-bn"},
                     {"di": "--points 200 --walk blind --device cpu", "eef": "--points 400 --device cpu"},
                     sizes=(25, 50, 100)),
    "smoke": Profile("digits", "--width 4 --train-size 512 --batch-size 64 -ep 2 --device cpu", "", "res18", 20, (0,),
                     1, {}, False,
                     {"ewe": "-ep 1 --ewe-epochs 0.2 --ewe-source 9 --batch-size 32",
                      "rs": "--rs-draws 1 --rs-warmup 0"},
                     {"di": "--points 20 --m 5 --walk blind --device cpu", "eef": "--epochs 2 --device cpu"},
                     "--embed-features 0.2", K=(1, 3), sizes=(10, 20), weights=(0.5, 2), alphas=(0.3, 0.7)),
}
