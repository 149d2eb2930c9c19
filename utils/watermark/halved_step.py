"""A watermark step in two halves that read the same weights and are independent of each other.

One half is the clean pass; the other, ascent and trigger pass, is computed by a twin model. How the two run side by
side is a matter of the device: see `two_thread_step` (CPU) and `two_stream_step` (CUDA).
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from utils.training.objective import batch_accuracy
from utils.training.step import cast_weights_once

AVERAGES, COUNTER = ("running_mean", "running_var"), "num_batches_tracked"


class HalvedStep:
    """`step(forward, x, y, picks)` adds the gradients of the objective's loss to the model's and returns its stats.

    Call it inside `with step:`. The twin shares the weights' memory and has its own gradients and running averages;
    `forward_of` turns a module into the function that maps pixels to logits. Gradients are bit-equal to those of the
    ordinary step where the kernels are; running averages are equal up to rounding. A subclass says how the half of the
    triggers runs beside the other: `start` begins it, and the function that it returns waits for its result.
    """

    def __init__(self, model, objective, forward_of):
        self.twin = twin_of(model)
        for layer in self.twin.modules():  # `add_batches` counts; a kernel for each layer and pass is saved
            if hasattr(layer, COUNTER):
                layer.num_batches_tracked = None
        self.pairs = [(p, q) for p, q in zip(model.parameters(), self.twin.parameters()) if p.requires_grad]
        self.averages = [t for name, t in self.twin.named_buffers() if name.endswith(AVERAGES)]
        self.objective, self.forward_of_twin = objective, forward_of(self.twin)
        self.forward_of_ascent = self.forward_of_twin

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def start(self, work):
        """Begin `work()` beside what follows; returns a function that waits for its result and gives it."""
        raise NotImplementedError

    def __call__(self, forward, x, y, picks) -> dict:
        objective = self.objective
        x_q, y_q = objective.x_q[picks], objective.y_q[picks]
        n, m = len(y), len(y_q)
        result_of_triggers = self.start(lambda: self._trigger_half(x_q, y_q, n))
        with objective.statistics.clean_batch():
            logits = forward(x)
        l_obj = F.cross_entropy(logits, y)
        objective.total(l_obj, torch.zeros_like(l_obj), n, m).backward()
        l_wat, right_q = result_of_triggers()
        objective.statistics.add_batches(self.twin, objective.ascents + 1)
        self._add_gradients()
        return objective.report(l_obj, l_wat, batch_accuracy(logits, y), right_q, n, m)

    def _trigger_half(self, x_q, y_q, n: int):
        self.twin.zero_grad(set_to_none=True)
        if self.averages:
            torch._foreach_zero_(self.averages)
        with cast_weights_once(x_q.device):
            x_q = self.objective.perturb(self.forward_of_ascent, x_q, y_q)
            logits_q = self.forward_of_twin(x_q)
        l_wat = F.cross_entropy(logits_q, y_q)
        self.objective.total(torch.zeros_like(l_wat), l_wat, n, len(y_q)).backward()
        return l_wat, batch_accuracy(logits_q, y_q)

    def _add_gradients(self) -> None:
        both = [(p.grad, q.grad) for p, q in self.pairs if p.grad is not None and q.grad is not None]
        if both:
            torch._foreach_add_(*map(list, zip(*both)))
        for p, q in self.pairs:
            if p.grad is None:
                p.grad = q.grad


def twin_of(model: nn.Module, learns: bool = True) -> nn.Module:
    """A copy in train mode with its own parameters over the same memory, and its own running averages.

    Own parameters keep gradients and autocast's copies of the weights separate; unless the copy `learns`, none of them
    gets a gradient.
    """
    memo = {id(p): nn.Parameter(p.detach(), p.requires_grad and learns) for p in model.parameters()}
    counted = (*AVERAGES, COUNTER)
    memo |= {id(t): t.clone() if name.endswith(counted) else t for name, t in model.named_buffers()}
    return copy.deepcopy(model, memo).train()
