"""RS's training (`train.py -tt rs`): a source whose triggers hold under Gaussian noise on its weights.

Departures from the code of Bansal et al. (2022): no accuracy under noise is measured during training; all training
images are used (the authors: half of them, see --train-size); batches of 128 (the authors: 256); CIFAR-100 has no
schedule of its own.
"""

import contextlib

import torch
from tqdm import tqdm

from utils.rivals.randomized_smoothing.noise import generator_on, noisy_gradient
from utils.training.objective import PlainObjective
from utils.watermark.running_statistics import RunningStatistics

WASHED = 60  # steps after which BatchNorm's running statistics keep 0.9 ** 60 = 0.2 % of their old values
MOMENTUM = 0.9
MILESTONES = (30, 60, 90)  # per cent of the epochs, after which the learning rate falls


def short_epoch_warning(steps: int, freeze: bool) -> str | None:
    """A warning where an epoch has too few steps to replace the noisy running statistics; None where there is none."""
    if freeze or steps >= WASHED:
        return None
    return (f"note: epochs of {steps} steps do not wash the robust pass's noise out of BatchNorm's running statistics: "
            "the model may answer at random; --rs-freeze-bn keeps it out")


def robust_pass(model, optimizer, x, y, sigmas, draws: int, generator, amp=None, after=lambda: None):
    """One optimiser step for each noise level in `sigmas`, on the mean noisy gradient divided by the number of levels.

    x (B, 3, 32, 32) in [0, 1] and y (B,) are triggers; arguments otherwise as in `noisy_gradient`. The steps change
    the clean weights; momentum and weight decay act in each step. `after` is called after each.
    """
    parameters = list(model.parameters())
    for sigma in sigmas:
        gradient = noisy_gradient(model, x, y, sigma, draws, generator, amp)
        for p, g in zip(parameters, gradient):
            p.grad = g.div_(len(sigmas))
        optimizer.step()
        after()


class SmoothedObjective(PlainObjective):
    """Cross-entropy on images and triggers; each epoch after epoch `warmup` (counted from 0) begins with a robust pass.

    It trains on `Batches` of `append_triggers(...)`: the last m images are the triggers x_q (m, 3, 32, 32) in [0, 1],
    y_q (m,), which are never augmented. A robust pass uses batches of `batch` triggers in random order (one batch of
    all triggers where there are fewer) without the last partial batch: with 100 triggers, one batch of 64 random ones.

    sigmas   the noise levels, see `noise_levels`
    draws    noise draws a level
    freeze   keep the noise out of BatchNorm's running statistics. Otherwise, as in the authors' code, the steps of the
             epoch that follow replace them
    """

    static = False  # recording steps with a robust pass between the epochs has not been tried

    def __init__(self, x_q, y_q, *, sigmas, draws: int, warmup: int, batch: int, freeze: bool = False,
                 amp=None):
        self.x_q, self.y_q, self.freeze = x_q, y_q, freeze
        self.sigmas, self.draws, self.warmup, self.batch, self.amp = sigmas, draws, warmup, min(batch, len(y_q)), amp

    def plan(self, batches, epoch, generator):
        """The plan of plain training, but triggers are neither shifted nor mirrored."""
        order, shift, flip, picks = super().plan(batches, epoch, generator)
        is_trigger = order >= len(batches.labels) - len(self.y_q)
        return order, shift.masked_fill(is_trigger[..., None], batches.pad), flip & ~is_trigger, picks

    def optimizer(self, parameters, lr, weight_decay, fused):
        """SGD with momentum 0.9."""
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=fused)

    def rate(self, lr, epoch, epochs):
        """Divided by 10 after 30, 60 and 90 % of the epochs; as in the authors' code from epochs 31, 61, 91 of 100."""
        return lr * 0.1 ** sum(100 * epoch > part * epochs for part in MILESTONES)

    def eligible(self, epoch):
        """Only epochs with a robust pass."""
        return epoch > self.warmup

    def begin(self, model, forward, optimizer, epoch, generator):
        """The robust pass, on the triggers."""
        if epoch <= self.warmup:
            return
        order = torch.randperm(len(self.y_q), generator=generator).to(self.y_q.device)
        picks = [part for part in order.split(self.batch) if len(part) == self.batch]
        noise = generator_on(self.x_q.device, generator)
        total = len(picks) * len(self.sigmas)
        frozen = RunningStatistics(model, "clean").trigger_batch() if self.freeze else contextlib.nullcontext()
        with frozen, tqdm(total=total, desc="robust pass", unit="level", disable=None, leave=False) as bar:
            for part in picks:
                robust_pass(model, optimizer, self.x_q[part], self.y_q[part], self.sigmas, self.draws, noise, self.amp,
                            bar.update)
