"""What a source minimises: plain ERM, ERM with triggers (Eq. 3), or the margin objective (Eq. 4).

An `Objective` is all that the training loop knows of a method; `utils.halves` knows the inside of one, `Watermark`.
"""

import torch
import torch.nn.functional as F

from utils.batchnorm import RunningStatistics

REDUCTIONS = ("joint", "sum")


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

    def begin(self, model, forward, optimizer, epoch: int, generator) -> None:
        """Before the first step of an epoch; `generator` is this call's own. Not called when an epoch goes on."""

    def state(self) -> dict:
        """What a run that goes on needs beside weights and optimiser: {name: tensor, number or string}."""
        return {}

    def restore(self, state: dict) -> None:
        """Take back what `state()` gave."""


class Plain(Objective):
    """Cross-entropy on the clean batch (Eq. 1)."""

    def __call__(self, forward, x, y, picks):
        logits = forward(x)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "train_accuracy": correct(logits, y)}


class Watermark(Objective):
    """L_obj + lambda L_wat of Eq. 4; without ascent steps it is ERM on clean data and triggers (Eq. 3).

    x_q (m, 3, 32, 32) in [0, 1] and y_q (m,): the trigger set. Each step draws `batch` triggers with replacement,
    perturbs them by `ascend` and adds their cross-entropy:

    reduction "joint": (sum_i l_i + weight * sum_j l_j) / (B + batch), the official code
    reduction "sum":   mean_i l_i + weight * mean_j l_j, Eq. 4 with lambda = weight
    """

    def __init__(self, model, x_q, y_q, *, weight, reduction, batch, steps, step_size, eps, bn_stats):
        self.x_q, self.y_q = x_q, y_q
        self.weight, self.reduction, self.batch = weight, reduction, batch
        self.ascents, self.step_size, self.eps = steps, step_size, eps
        self.statistics = RunningStatistics(model, bn_stats)

    def sample(self, steps: int, generator):
        """Positions of the triggers of an epoch, (steps, batch), uniform with replacement."""
        return torch.randint(0, len(self.y_q), (steps, self.batch), generator=generator)

    def __call__(self, forward, x, y, picks):
        x_q, y_q = self.x_q[picks], self.y_q[picks]
        if self.statistics.mode == "shared":
            with self.statistics.ascent():
                x_q = self.perturb(forward, x_q, y_q)
            logits, logits_q = forward(torch.cat([x, x_q])).split([len(x), len(x_q)])
        else:
            with self.statistics.clean_batch():
                logits = forward(x)
            with self.statistics.ascent():
                x_q = self.perturb(forward, x_q, y_q)
            with self.statistics.trigger_batch():
                logits_q = forward(x_q)
        l_obj, l_wat = F.cross_entropy(logits, y), F.cross_entropy(logits_q, y_q)
        loss = self.total(l_obj, l_wat, len(y), len(y_q))
        return loss, self.report(l_obj, l_wat, correct(logits, y), correct(logits_q, y_q), len(y), len(y_q))

    def total(self, l_obj, l_wat, n: int, m: int):
        """L_obj + lambda L_wat from the means over n clean images and m triggers."""
        if self.reduction == "joint":
            return (n * l_obj + self.weight * m * l_wat) / (n + m)
        return l_obj + self.weight * l_wat

    def report(self, l_obj, l_wat, right, right_q, n: int, m: int) -> dict:
        """The figures of a step: losses as in `total`, shares of clean images and of triggers that are right."""
        l_obj, l_wat = l_obj.detach(), l_wat.detach()
        return {
            "loss": self.total(l_obj, l_wat, n, m),
            "loss_obj": l_obj,
            "loss_wat": l_wat,
            "train_accuracy": right,
            "trigger_batch_accuracy": right_q,
        }

    def perturb(self, forward, x, y):
        """x + delta of the inner maximisation."""
        if not self.ascents:
            return x
        return ascend(forward, x, y, steps=self.ascents, step_size=self.step_size, eps=self.eps)


def ascend(forward, x, y, *, steps: int, step_size: float, eps: float):
    """Projected gradient ascent on cross-entropy (Algorithm 1): argmax of CE(h(x + delta), y) over |delta|_inf <= eps.

    x (N, 3, H, W) in [0, 1]; y (N,); step_size and eps in pixel units (1/255 is one grey level). delta starts
    at 0; after each sign step it is projected on the eps ball and x + delta into [0, 1]. Returns x + delta,
    detached. Gradients are taken with respect to the images alone: no parameter, no `.grad` is touched.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(forward(x_adv), y), x_adv)
        x_adv = torch.minimum(torch.maximum(x_adv.detach() + step_size * gradient.sign(), low), high)
    return x_adv.detach()


def effective_weight(weight: float, reduction: str, n: int, m: int) -> float:
    """lambda of Eq. 4 that gives the same direction of descent: weight itself, or weight * m / n under `joint`."""
    return weight if reduction == "sum" else weight * m / n


def correct(logits, y):
    """Share of a batch that is classified as y, a scalar tensor (no device synchronisation)."""
    return (logits.detach().argmax(1) == y).float().mean()
