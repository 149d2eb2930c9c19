"""A watermark step on the CPU in two threads: the clean pass in one, ascent and trigger pass in the other.

The two halves read the same weights and are independent of each other. In a narrow model two threads that share each
layer of a small batch spend much of their time waiting for each other. Measured on two cores only: a step of ResNet-18
of width 16 takes an eighth less time this way; at full width it takes a little more, so wide models use ordinary
steps.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import nn

from utils.system.processes import is_distributed
from utils.training.objective import batch_accuracy
from utils.training.step import cast_weights_once

NARROW = 32  # channels of the first stage; up to this width it was always faster (measured on two cores)
SLACK = 1.1  # the longer half may take this many times as long as an even share of the work


class TwoThreadStep:
    """`step(forward, x, y, picks)` adds the gradients of the objective's loss to the model's and returns its stats.

    Call it inside `with step:`, and in the process that created it, because a forked process lacks the second thread.
    Triggers pass through a twin model, which shares the weights' memory and has its own gradients and running
    averages; `forward_of` turns a module into the function that maps pixels to logits. With one thread for each half
    the gradients are bit-equal to those of the ordinary step; running averages are equal up to rounding.
    """

    @classmethod
    def where_faster(cls, model, objective, batches, forward_of):
        """A `TwoThreadStep`, or None where the ordinary step is as fast or the passes depend on each other."""
        if objective.statistics.mode == "shared" or is_distributed():
            return None
        convolutions = [p for p in model.parameters() if p.dim() == 4]
        if not convolutions or convolutions[0].device.type != "cpu" or convolutions[0].shape[0] > NARROW:
            return None
        clean = 3 * batches.batch_size
        threads = split_threads(torch.get_num_threads(), clean, (3 + 2 * objective.ascents) * objective.batch)
        return cls(model, objective, forward_of, threads) if threads else None

    def __init__(self, model, objective, forward_of, threads: tuple[int, int]):
        # own parameters over the same memory, so that gradients and autocast's copies stay separate
        memo = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
        self.pairs = [(p, memo[id(p)]) for p in model.parameters() if p.requires_grad]
        counted = ("running_mean", "running_var", "num_batches_tracked")
        memo |= {id(t): t for name, t in model.named_buffers() if not name.endswith(counted)}
        self.twin = copy.deepcopy(model, memo).train()
        self.averages = [t for name, t in self.twin.named_buffers() if name.endswith(counted[:2])]
        self.objective, self.forward_of_twin, self.threads = objective, forward_of(self.twin), threads
        self.pool = ThreadPoolExecutor(1, "triggers", torch.set_num_threads, (threads[1],))

    def __enter__(self):
        """Give this thread its share of the OpenMP threads. The batch and the update belong inside too: OpenMP threads
        that have just worked keep spinning for some milliseconds and would slow down the other half."""
        torch.set_num_threads(self.threads[0])

    def __exit__(self, *_):
        torch.set_num_threads(sum(self.threads))

    def __call__(self, forward, x, y, picks) -> dict:
        objective = self.objective
        x_q, y_q = objective.x_q[picks], objective.y_q[picks]
        n, m = len(y), len(y_q)
        trigger_half = self.pool.submit(self._trigger_half, x_q, y_q, n)
        with objective.statistics.clean_batch():
            logits = forward(x)
        l_obj = F.cross_entropy(logits, y)
        objective.total(l_obj, torch.zeros_like(l_obj), n, m).backward()
        l_wat, right_q = trigger_half.result()
        objective.statistics.add_batches(self.twin, objective.ascents + 1)
        for p, q in self.pairs:
            if q.grad is not None:
                p.grad = q.grad if p.grad is None else p.grad.add_(q.grad)
        return objective.report(l_obj, l_wat, batch_accuracy(logits, y), right_q, n, m)

    def _trigger_half(self, x_q, y_q, n: int):
        self.twin.zero_grad(set_to_none=True)
        for average in self.averages:
            average.zero_()
        with cast_weights_once(x_q.device):
            x_q = self.objective.perturb(self.forward_of_twin, x_q, y_q)
            logits_q = self.forward_of_twin(x_q)
        l_wat = F.cross_entropy(logits_q, y_q)
        self.objective.total(torch.zeros_like(l_wat), l_wat, n, len(y_q)).backward()
        return l_wat, batch_accuracy(logits_q, y_q)


def split_threads(threads: int, clean: float, triggers: float) -> tuple[int, int] | None:
    """Threads for each of the two halves, whose work is given in any unit; None where one would wait too long."""
    if threads < 2:
        return None

    def longer(first):
        return max(clean / first, triggers / (threads - first))

    first = min(range(1, threads), key=longer)
    return (first, threads - first) if longer(first) <= SLACK * (clean + triggers) / threads else None
