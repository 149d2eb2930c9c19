"""The halves of a watermark step in two threads, on the CPU.

In a narrow model two threads that share each layer of a small batch spend much of their time waiting for each other.
Measured on two cores only: a step of ResNet-18 of width 16 takes an eighth less time this way; at full width it takes
a little more, so wide models use ordinary steps.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

import models
from utils.system.machine import is_distributed
from utils.watermark.halved_step import HalvedStep

NARROW = 32  # channels of the first stage; up to this width it was always faster (measured on two cores)
SLACK = 1.1  # the longer half may take this many times as long as an even share of the work


class TwoThreadStep(HalvedStep):
    """The clean pass in this thread, the triggers in another. Use it in the process that created it: a forked process
    lacks the second thread. With one thread for each half the gradients are bit-equal to those of the ordinary step.
    """

    @classmethod
    def where_faster(cls, model, objective, batches, forward_of):
        """A `TwoThreadStep`, or None where the ordinary step is as fast, the passes depend on each other, or a pass may
        draw random numbers, whose order two threads would change."""
        if objective.statistics.ascends_in_eval or is_distributed() or not models.is_own(model):
            return None
        convolutions = [p for p in model.parameters() if p.dim() == 4]
        if not convolutions or convolutions[0].device.type != "cpu" or convolutions[0].shape[0] > NARROW:
            return None
        clean = 3 * batches.batch_size
        threads = split_threads(torch.get_num_threads(), clean, (3 + 2 * objective.ascents) * objective.batch)
        return cls(model, objective, forward_of, threads) if threads else None

    def __init__(self, model, objective, forward_of, threads: tuple[int, int]):
        super().__init__(model, objective, forward_of)
        self.threads = threads
        self.pool = ThreadPoolExecutor(1, "triggers", torch.set_num_threads, (threads[1],))

    def __enter__(self):
        """Give this thread its share of the OpenMP threads. The batch and the update belong inside too: OpenMP threads
        that have just worked keep spinning for some milliseconds and would slow down the other half."""
        torch.set_num_threads(self.threads[0])
        return self

    def __exit__(self, *_):
        torch.set_num_threads(sum(self.threads))

    def start(self, work):
        return self.pool.submit(work).result


def split_threads(threads: int, clean: float, triggers: float) -> tuple[int, int] | None:
    """Threads for each of the two halves, whose work is given in any unit; None where one would wait too long."""
    if threads < 2:
        return None

    def longer(first):
        return max(clean / first, triggers / (threads - first))

    first = min(range(1, threads), key=longer)
    return (first, threads - first) if longer(first) <= SLACK * (clean + triggers) / threads else None
