"""How a model is trained: settings and the flags that set them."""

import argparse
from dataclasses import dataclass, replace

import torch

from utils.system.refusals import COUNT, POSITIVE, SEED, number

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingSettings:
    """What the training loop uses; `lr` and `weight_decay` are those of SGD unless the objective says otherwise.

    The rates are those of `epochs`; the training ends after `stop_after` of them, None: after all.
    """

    epochs: int
    lr: float = 0.1
    weight_decay: float = 1e-4
    batch_size: int = 128
    seed: int = 0
    amp: torch.dtype | None = None
    compile: bool = False
    graph: bool = False
    tf32: bool = True
    deterministic: bool = False
    stop_after: int | None = None

    def lengthened(self, epochs: int) -> "TrainingSettings":
        """The same settings with more epochs."""
        return replace(self, epochs=self.epochs + epochs)


def add_training_flags(parser: argparse.ArgumentParser):
    """Declare the flags behind `TrainingSettings`, and --device; returns the group of the first."""
    training = p = parser.add_argument_group("training")
    p.add_argument("-ep", "--epoch", type=COUNT, default=200, help="epochs; the rate falls at 1/2 and 3/4 of them")
    p.add_argument("--batch-size", type=COUNT, default=128, help="images a step")
    p.add_argument("--lr", type=POSITIVE, default=0.1, help="initial learning rate")
    p.add_argument("--weight-decay", type=number(float, 0, 1e38), default=1e-4, help="weight decay")
    p.add_argument("--seed", type=SEED, default=0, help="seed of everything but the split")
    p = parser.add_argument_group("machine")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--amp", nargs="?", const="bf16", choices=tuple(AMP), help="autocast: faster, changes the result "
                   "slightly; bf16, or fp16, which is faster on NVIDIA GPUs (default without a name: bf16)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model: changes the result by rounding")
    p.add_argument("--no-tf32", dest="tf32", action="store_false",
                   help="CUDA: convolutions in full fp32: slower, changes the result by rounding")
    p.add_argument("--no-graph", dest="graph", action="store_false",
                   help="CUDA: no recorded graph of a step: slower, same result")
    p.add_argument("--deterministic", action="store_true", help="bit-equal reruns on a GPU too, slower")
    return training


def training_settings(flags) -> TrainingSettings:
    """The settings that parsed flags give."""
    return TrainingSettings(
        epochs=flags.epoch, lr=flags.lr, weight_decay=flags.weight_decay, batch_size=flags.batch_size, seed=flags.seed,
        amp=AMP.get(flags.amp), compile=flags.compile, graph=flags.graph, tf32=flags.tf32,
        deterministic=flags.deterministic, stop_after=getattr(flags, "stop_after", None))
