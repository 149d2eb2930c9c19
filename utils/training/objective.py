"""TODO (utils.losses)"""

import torch
import torch.nn.functional as F


class Objective:
    """Called as `objective(forward, x, y, picks) -> (loss, stats)`: `forward` maps pixels to float logits,
    x (B, 3, 32, 32) in [0, 1], y (B,), `picks` is one row of `sample(...)`. The loss is a scalar, `stats` a dict of
    scalar tensors on the device. The rest below is the paper's way of training, which a rival may replace.
    """

    statistics = None  # `RunningStatistics`, where triggers enter BatchNorm
    more = 0  # epochs beside those of -ep
    static = True  # every step runs the same kernels, so that one may be recorded and replayed

    def steps(self, batches, epoch: int) -> int:
        """Steps of an epoch, which is counted from 0."""
        return batches.steps

    def sample(self, steps: int, generator):
        """The random numbers of `steps` steps: none."""
        return torch.zeros(steps, 0, dtype=torch.long)

    def plan(self, batches, epoch: int, generator):
        """All rows of an epoch, (order, shift, flip, picks), a function of the generator alone; see `data.Plan`."""
        return (*batches.plan(generator), self.sample(batches.steps, generator).to(batches.device))

    def optimizer(self, parameters, lr, weight_decay: float, fused: bool):
        """SGD without momentum; `lr` is a tensor that the loop fills."""
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, fused=fused)

    def rate(self, lr: float, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch, counted from 0: it falls by 10 at 1/2 and 3/4 of the epochs."""
        return lr * 0.1 ** ((2 * epoch >= epochs) + (4 * epoch >= 3 * epochs))

    def eligible(self, epoch: int) -> bool:
        """Whether the best checkpoint may be of this epoch."""
        return True

    def two_thread_step(self, model, batches, forward_of):
        """An object that computes the gradients of a step in two threads on the CPU, or None (see `training.step`)."""
        return None

    def begin(self, model, forward, optimizer, epoch: int, generator) -> None:
        """Before the first step of an epoch; `generator` is this call's own. Not called when an epoch goes on."""

    def state(self) -> dict:
        """What a run that goes on needs beside weights and optimiser: {name: tensor, number or string}."""
        return {}

    def restore(self, state: dict) -> None:
        """Take back what `state()` gave."""


class PlainObjective(Objective):
    """Cross-entropy on the clean batch (Eq. 1)."""

    def __call__(self, forward, x, y, picks):
        logits = forward(x)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "train_accuracy": batch_accuracy(logits, y)}


def batch_accuracy(logits, y):
    """Share of a batch that is classified as y, a scalar tensor (no device synchronisation)."""
    return (logits.detach().argmax(1) == y).float().mean()
