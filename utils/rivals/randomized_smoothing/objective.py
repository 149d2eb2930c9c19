"""TODO (utils.smoothing)"""

import contextlib

import torch
from tqdm import tqdm

from utils.data.batches import Batches
from utils.rivals.randomized_smoothing.noise import generator_on, noisy_gradient
from utils.training.objective import PlainObjective
from utils.watermark.running_statistics import RunningStatistics

WASHED = 60  # steps after which 0.9 ** 60 = 0.2 % of BatchNorm's running statistics is left
MOMENTUM = 0.9
MILESTONES = (30, 60, 90)  # per cent of the epochs


def short_epoch_warning(steps: int, freeze: bool) -> str | None:
    """A word of caution where an epoch's steps do not wash the noise out of the running statistics."""
    if freeze or steps >= WASHED:
        return None
    return (f"note: epochs of {steps} steps do not wash the robust pass's noise out of BatchNorm's running statistics: "
            "the model may answer at random; --rs-freeze-bn keeps it out")


def robust_pass(model, optimizer, x, y, sigmas, draws: int, generator, amp: bool = False, after=lambda: None):
    """One optimiser step a noise level, each on the mean noisy gradient divided by the number of levels.

    The steps are taken at the clean weights; momentum and weight decay act in each. `after` is called after each.
    """
    parameters = list(model.parameters())
    for sigma in sigmas:
        gradient = noisy_gradient(model, x, y, sigma, draws, generator, amp)
        for p, g in zip(parameters, gradient):
            p.grad = g.div_(len(sigmas))
        optimizer.step()
        after()


class SmoothedObjective(PlainObjective):
    """Cross-entropy on data and triggers, and from epoch `warmup` + 1 (counted from 0) on a robust pass before it.

    Trained on `Batches` of `united(...)` images, the last m of which are the triggers x_q (m, 3, 32, 32) in [0, 1],
    y_q (m,); these are never augmented. A robust pass takes batches of `batch` triggers in random order, of all where
    there are fewer, and drops the last partial one: with 100 triggers it is one batch of a random 64. The epoch's
    own batches wash the noise out of BatchNorm's running statistics, as officially; with `freeze` it never enters.
    """

    static = False  # no step has been recorded yet with a pass between the epochs

    def __init__(self, x_q, y_q, *, sigmas, draws: int, warmup: int, batch: int, freeze: bool = False,
                 amp: bool = False):
        self.x_q, self.y_q, self.freeze = x_q, y_q, freeze
        self.sigmas, self.draws, self.warmup, self.batch, self.amp = sigmas, draws, warmup, min(batch, len(y_q)), amp

    def plan(self, batches, epoch, generator):
        """As ever, but triggers are neither shifted nor mirrored."""
        order, shift, flip, picks = super().plan(batches, epoch, generator)
        trigger = order >= len(batches.labels) - len(self.y_q)
        return order, shift.masked_fill(trigger[..., None], Batches.PAD), flip & ~trigger, picks

    def optimizer(self, parameters, lr, weight_decay, fused):
        """SGD with momentum."""
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=fused)

    def rate(self, lr, epoch, epochs):
        """It falls by 10 after 30, 60 and 90 % of the epochs, one epoch late as officially: 31, 61 and 91 of 100."""
        return lr * 0.1 ** sum(100 * epoch > part * epochs for part in MILESTONES)

    def eligible(self, epoch):
        """A model of before the first robust pass is not what is reported."""
        return epoch > self.warmup

    def begin(self, model, forward, optimizer, epoch, generator):
        """The robust pass."""
        if epoch <= self.warmup:
            return
        order = torch.randperm(len(self.y_q), generator=generator).to(self.y_q.device)
        picks = [part for part in order.split(self.batch) if len(part) == self.batch]
        noise = generator_on(self.x_q.device, generator)
        total = len(picks) * len(self.sigmas)
        still = RunningStatistics(model, "clean").trigger_batch() if self.freeze else contextlib.nullcontext()
        with still, tqdm(total=total, desc="robust pass", unit="level", disable=None, leave=False) as bar:
            for part in picks:
                robust_pass(model, optimizer, self.x_q[part], self.y_q[part], self.sigmas, self.draws, noise, self.amp,
                            bar.update)
