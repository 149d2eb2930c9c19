"""Which batches enter BatchNorm's running statistics (row 2 of docs/differences.md).

In train mode a layer normalises by the statistics of the batch; the running averages are used in eval mode only. So the
modes `paper` and `clean` give the same weights, and differ in what an evaluation sees:

paper   trigger batches enter the running averages, as in the official code; a second set of averages, fed by
        clean batches alone, is kept beside them, so that one run yields both models
clean   trigger batches do not enter the running averages
shared  triggers are normalised together with the clean batch, and the ascent uses the running averages
eval    as `paper`, except that the ascent's passes run in eval mode (as CFW's code has it): they use the running
        averages and do not enter them
"""

from contextlib import contextmanager

import torch
from torch import nn

from utils.system.refusals import Refusal

BN_MODES = ("paper", "clean", "shared", "eval")
KEEPS_CLEAN = ("paper", "eval")  # modes with clean averages beside those that triggers enter


class RunningStatistics:
    """The running statistics of all BatchNorm layers of `model` under one of `BN_MODES`."""

    def __init__(self, model: nn.Module, mode: str):
        layers = {n: m for n, m in model.named_modules()
                  if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None}
        self.layers, self.mode = list(layers.values()), mode
        if mode in KEEPS_CLEAN and len({layer.momentum for layer in self.layers} | {None}) > 2:
            raise Refusal(f"--bn-stats {mode}: the model's BatchNorm layers have different momenta; pass shared "
                          "or clean")
        if mode in KEEPS_CLEAN and any(layer.momentum is None for layer in self.layers):
            raise Refusal(f"--bn-stats {mode}: a BatchNorm layer without momentum averages all batches; pass shared or "
                          "clean")
        names = [f"{name}.{kind}" for name in layers for kind in ("running_mean", "running_var")]
        # `.data` hides writes from autograd's version counter, which would object to them between a forward and its
        # backward pass; they are safe, because a train-mode backward pass does not read these buffers
        self.live = [getattr(m, kind).data for m in self.layers for kind in ("running_mean", "running_var")]
        twin = mode in KEEPS_CLEAN and bool(self.layers)
        self.clean = {n: t.clone() for n, t in zip(names, self.live)} if twin else {}

    @property
    def ascends_in_eval(self) -> bool:
        """Whether the ascent reads the running averages, so that it has to wait for the clean batch."""
        return self.mode in ("shared", "eval")

    @contextmanager
    def clean_batch(self):
        """Context for a train-mode forward of a clean batch, which enters all averages."""
        if not self.clean:
            yield
            return
        momentum = self.layers[0].momentum
        before = [t.clone() for t in self.live]
        for layer in self.layers:
            layer.momentum = 1.0  # so that the buffers receive the batch's own statistics
        try:
            yield
        finally:
            for layer in self.layers:
                layer.momentum = momentum
        with torch.no_grad():
            for old in (before, list(self.clean.values())):
                torch._foreach_mul_(old, 1 - momentum)
                torch._foreach_add_(old, self.live, alpha=momentum)
            torch._foreach_copy_(self.live, before)

    @contextmanager
    def trigger_batch(self):
        """Context for a train-mode forward of triggers, which enters the running averages in modes `KEEPS_CLEAN`."""
        if self.mode in KEEPS_CLEAN:
            yield
            return
        for layer in self.layers:
            layer.track_running_stats = False  # normalise by the batch, update nothing
        try:
            yield
        finally:
            for layer in self.layers:
                layer.track_running_stats = True

    @contextmanager
    def running_averages(self):
        """Context for the ascent's passes, which in `shared` and `eval` normalise by the running averages."""
        if not self.ascends_in_eval:
            yield
            return
        for layer in self.layers:
            layer.eval()
        try:
            yield
        finally:
            for layer in self.layers:
                layer.train()

    def add_batches(self, copy: nn.Module, n: int) -> None:
        """Add n trigger batches that passed through a copy of the model whose averages began at zero.

        After n batches a running average is (1 - momentum)^n times its old value plus the average of that copy.
        """
        if self.mode != "paper" or not self.layers:
            return
        layers = [m for m in copy.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        with torch.no_grad():
            torch._foreach_mul_(self.live, (1 - self.layers[0].momentum) ** n)
            torch._foreach_add_(self.live, [t for m in layers for t in (m.running_mean, m.running_var)])
            torch._foreach_add_([layer.num_batches_tracked for layer in self.layers], n)

    @contextmanager
    def cleaned(self):
        """Context in which the model holds the clean averages, for evaluating and saving the clean model."""
        before = [t.clone() for t in self.live]
        self._put(list(self.clean.values()))
        try:
            yield
        finally:
            self._put(before)

    def _put(self, values):
        with torch.no_grad():
            torch._foreach_copy_(self.live, values)

    def state(self) -> dict:
        """The clean averages, {buffer name: tensor}; empty in other modes than `KEEPS_CLEAN`."""
        return {name: t.detach().cpu().clone() for name, t in self.clean.items()}

    def restore(self, state: dict) -> None:
        """Take the clean averages back from `state()`."""
        for name, tensor in self.clean.items():
            tensor.copy_(state[name])
