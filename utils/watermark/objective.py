"""The objectives of a watermarked source: ERM with triggers (Eq. 3) and the margin objective (Eq. 4)."""

import torch
import torch.nn.functional as F

from utils.training.objective import Objective, batch_accuracy
from utils.training.step import cast_weights_once
from utils.watermark.ascent import ascend
from utils.watermark.running_statistics import RunningStatistics
from utils.watermark.two_stream_step import TwoStreamStep
from utils.watermark.two_thread_step import TwoThreadStep

REDUCTIONS = ("joint", "sum")


class WatermarkObjective(Objective):
    """L_obj + lambda L_wat of Eq. 4; without ascent steps it is ERM on clean data and triggers (Eq. 3).

    x_q (m, 3, 32, 32) in [0, 1] and y_q (m,): the trigger set. Each step draws `batch` triggers with replacement,
    perturbs them with `ascend` (`steps` steps of `step_size` within `eps`) and adds their cross-entropy:

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
            with cast_weights_once(x.device):
                with self.statistics.ascent():
                    x_q = self.perturb(forward, x_q, y_q)
                logits, logits_q = forward(torch.cat([x, x_q])).split([len(x), len(x_q)])
        else:
            with self.statistics.clean_batch():
                logits = forward(x)
            with cast_weights_once(x.device):
                with self.statistics.ascent():
                    x_q = self.perturb(forward, x_q, y_q)
                with self.statistics.trigger_batch():
                    logits_q = forward(x_q)
        l_obj, l_wat = F.cross_entropy(logits, y), F.cross_entropy(logits_q, y_q)
        loss = self.total(l_obj, l_wat, len(y), len(y_q))
        right, right_q = batch_accuracy(logits, y), batch_accuracy(logits_q, y_q)
        return loss, self.report(l_obj, l_wat, right, right_q, len(y), len(y_q))

    def halved_step(self, model, batches, forward_of, compiled: bool = False):
        """Clean pass and trigger passes side by side where that is faster; not for a subclass with another loss."""
        if type(self) is not WatermarkObjective:
            return None
        step = TwoStreamStep.where_faster(model, self, forward_of, compiled)
        if step is None and not compiled:  # torch.compile compiles in one thread at a time
            step = TwoThreadStep.where_faster(model, self, batches, forward_of)
        return step

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


def effective_weight(weight: float, reduction: str, n: int, m: int) -> float:
    """lambda of Eq. 4 that gives the same direction of descent: weight itself, or weight * m / n under `joint`."""
    return weight if reduction == "sum" else weight * m / n
