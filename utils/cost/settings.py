"""The settings of the benchmark and the flags that set them."""

import argparse
from dataclasses import dataclass, replace

import models
from utils.system.flags import COUNT, Parser, settings_from

TIMED_OBJECTIVES = ("margin", "base", "soft")


@dataclass(frozen=True)
class BenchmarkSettings:
    """One setting of the benchmark; the fields are the flags of `utils.benchmark`, and keys of the JSON it writes."""

    model: str
    width: int
    batch_size: int
    trigger_batch: int
    num_query: int
    steps: int
    device: str
    rounds: int
    objectives: tuple | list
    components: bool
    rivals: bool
    compile: bool
    graph: bool
    tf32: bool
    json: str | None

    def on(self, device) -> "BenchmarkSettings":
        """The same settings on a device: without CUDA no graph is recorded."""
        return replace(self, graph=self.graph and device.type == "cuda")


def parse_benchmark(argv=None, description: str | None = None) -> BenchmarkSettings:
    """The settings that a command line (default: this process's) gives; `description` heads its --help."""
    p = Parser(prog="python -m utils.benchmark", description=description,
               formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default="res34", choices=models.NAMES, help="architecture")
    p.add_argument("--width", type=COUNT, default=64, help="channels of the first stage")
    p.add_argument("--batch-size", type=COUNT, default=128, help="images a step")
    p.add_argument("--trigger-batch", type=COUNT, default=25, help="triggers a step")
    p.add_argument("-nq", "--num-query", type=COUNT, default=100, help="triggers")
    p.add_argument("--steps", type=COUNT, default=5, help="ascent steps K")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--rounds", type=COUNT, default=5, help="timings of each contender")
    p.add_argument("--objectives", nargs="+", default=TIMED_OBJECTIVES, choices=TIMED_OBJECTIVES, help="what to time")
    p.add_argument("--components", action="store_true", help="also the parts of our margin step")
    p.add_argument("--rivals", action="store_true", help="instead: the steps of EWE, RS, DI and EEF beside a plain one")
    p.add_argument("--compile", action="store_true", help="our model through torch.compile")
    p.add_argument("--no-graph", dest="graph", action="store_false", help="CUDA: ordinary steps, no graph")
    p.add_argument("--no-tf32", dest="tf32", action="store_false", help="CUDA: full fp32 convolutions")
    p.add_argument("--json", metavar="FILE", help="write rows and ratios there")
    return settings_from(BenchmarkSettings, p.parse_args(argv))
