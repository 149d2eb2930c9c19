"""What the training loop knows of a method: an objective; and the plain one (Eq. 1)."""

import torch
import torch.nn.functional as F


class Objective:
    """Called as `objective(forward, x, y, picks) -> (loss, stats)`.

    forward  pixels -> float logits
    x, y     the batch: x (B, 3, 32, 32) in [0, 1], y (B,)
    picks    one row of `sample(...)`
    loss     a scalar tensor; `stats` is a dict of scalar tensors on the device

    The methods below are the paper's way of training; a rival replaces some of them.
    """

    statistics = None  # `watermark.running_statistics.RunningStatistics` where there are trigger batches
    more = 0  # epochs in addition to those of -ep
    static = True  # whether every step runs the same kernels, so that one can be recorded and replayed

    def steps(self, batches, epoch: int) -> int:
        """Steps of an epoch, which is counted from 0."""
        return batches.steps

    def sample(self, steps: int, generator):
        """The random numbers of `steps` steps: none."""
        return torch.zeros(steps, 0, dtype=torch.long)

    def plan(self, batches, epoch: int, generator):
        """All rows of an epoch, (order, shift, flip, picks), a function of the generator alone; see `EpochPlan`."""
        return (*batches.plan(generator), self.sample(batches.steps, generator).to(batches.device))

    def optimizer(self, parameters, lr, weight_decay: float, fused: bool):
        """SGD without momentum; `lr` is a tensor that the loop fills."""
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, fused=fused)

    def rate(self, lr: float, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch, counted from 0; it is divided by 10 at 1/2 and at 3/4 of the epochs."""
        return lr * 0.1 ** ((2 * epoch >= epochs) + (4 * epoch >= 3 * epochs))

    def eligible(self, epoch: int) -> bool:
        """Whether the best checkpoint may come from this epoch."""
        return True

    def halved_step(self, model, batches, forward_of, compiled: bool = False):
        """None, or what computes a step's gradients in two halves side by side.

        It is a context manager, and inside its own `with` it is called as (forward, x, y, picks) -> stats.
        """
        return None

    def begin(self, model, forward, optimizer, epoch: int, generator) -> None:
        """Called before the first step of an epoch, but not when an interrupted epoch is continued."""

    def state(self) -> dict:
        """What a continued run needs besides weights and optimiser: {name: tensor, number or string}."""
        return {}

    def restore(self, state: dict) -> None:
        """Take back what `state()` gave."""


class PlainObjective(Objective):
    """Cross-entropy on the clean batch (Eq. 1)."""

    def __call__(self, forward, x, y, picks):
        logits = forward(x)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "train_accuracy": batch_accuracy(logits, y)}


def ewe_adam(parameters, lr, weight_decay: float, fused: bool):
    """Adam with the betas and eps of EWE's authors, who train sources and copies so (Jia et al., 2021)."""
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), eps=1e-5, weight_decay=weight_decay, fused=fused)


def batch_accuracy(logits, y):
    """Share of a batch that is classified as y, a scalar tensor; nothing waits for the device."""
    return (logits.detach().argmax(1) == y).float().mean()
