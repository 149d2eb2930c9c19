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

from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from models import AVERAGES
from utils.system.refusals import Refusal

BN_MODES = ("paper", "clean", "shared", "eval")
KEEPS_CLEAN = ("paper", "eval")  # modes with clean averages beside those that triggers enter


class RunningStatistics:
    """The running statistics of all BatchNorm layers of `model` under one of `BN_MODES`.

    live   the averages of the layers themselves, a list of tensors
    clean  {buffer name: tensor}, the averages of clean batches alone; empty in other modes than `KEEPS_CLEAN`
    """

    def __init__(self, model: nn.Module, mode: str):
        layers = {n: m for n, m in model.named_modules()
                  if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None}
        if mode not in BN_MODES:
            raise ValueError(f"{mode!r} is none of {BN_MODES}")
        self.layers, self.mode = list(layers.values()), mode
        self.ascends_in_eval = mode in ("shared", "eval")  # so that the ascent has to wait for the clean batch
        momenta = {layer.momentum for layer in self.layers}
        if mode in KEEPS_CLEAN and (len(momenta) > 1 or None in momenta):
            raise Refusal(f"--bn-stats {mode}: the model's BatchNorm layers have different momenta, or one has none "
                          "and averages all batches; pass shared or clean")
        # `.data` hides writes from autograd's version counter, which would object to them between a forward and its
        # backward pass; they are safe, because a train-mode backward pass does not read these buffers
        live = {f"{name}.{kind}": getattr(m, kind).data for name, m in layers.items() for kind in AVERAGES}
        self.live = list(live.values())
        self.clean = {name: t.clone() for name, t in live.items()} if mode in KEEPS_CLEAN else {}

    @contextmanager
    def _all_layers(self, attribute: str, value, before):
        for layer in self.layers:
            setattr(layer, attribute, value)
        try:
            yield
        finally:
            for layer in self.layers:
                setattr(layer, attribute, before)

    @contextmanager
    def clean_batch(self):
        """Context for a train-mode forward of a clean batch, which enters all averages."""
        if not self.clean:
            yield
            return
        momentum, before = self.layers[0].momentum, [t.clone() for t in self.live]
        with self._all_layers("momentum", 1.0, momentum):  # so that the buffers receive the batch's own statistics
            yield
        for old in (before, list(self.clean.values())):
            torch._foreach_mul_(old, 1 - momentum)
            torch._foreach_add_(old, self.live, alpha=momentum)
        torch._foreach_copy_(self.live, before)

    def trigger_batch(self):
        """Context for a train-mode forward of triggers, which enters the running averages in modes `KEEPS_CLEAN`."""
        return nullcontext() if self.mode in KEEPS_CLEAN else self._all_layers("track_running_stats", False, True)

    def running_averages(self):
        """Context for the ascent's passes, which in `shared` and `eval` normalise by the running averages."""
        return self._all_layers("training", False, True) if self.ascends_in_eval else nullcontext()

    def add_batches(self, twin: nn.Module, n: int) -> None:
        """Add n trigger batches that passed through a twin of the model whose averages began at zero.

        After n batches a running average is (1 - momentum)^n times its old value plus the average of that twin.
        """
        if self.mode != "paper":
            return
        layers = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        torch._foreach_mul_(self.live, (1 - self.layers[0].momentum) ** n)
        torch._foreach_add_(self.live, [getattr(m, kind) for m in layers for kind in AVERAGES])
        torch._foreach_add_([layer.num_batches_tracked for layer in self.layers], n)

    @contextmanager
    def cleaned(self):
        """Context in which the model holds the clean averages, for evaluating and saving the clean model."""
        before = [t.clone() for t in self.live]
        torch._foreach_copy_(self.live, list(self.clean.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(self.live, before)

    def state(self) -> dict:
        """The clean averages, {buffer name: tensor on the CPU}."""
        return {name: t.cpu().clone() for name, t in self.clean.items()}

    def restore(self, state: dict) -> None:
        """Take the clean averages back from `state()`."""
        for name, tensor in self.clean.items():
            tensor.copy_(state[name])
