"""The method: projected gradient ascent (Algorithm 1), ERM with triggers (Eq. 3) and the margin objective (Eq. 4)."""

import math

import torch
import torch.nn.functional as F

from utils.training.loop import Objective, batch_accuracy
from utils.training.speed import cast_weights_once
from utils.watermark.batchnorm import RunningStatistics

REDUCTIONS = ("joint", "sum")
ODDS = 2.0  # nats by which a drawn class is to be likelier than another candidate, where candidates are given


def ascend(forward, x, y, *, steps: int, step_size, eps):
    """Projected gradient ascent on cross-entropy (Algorithm 1): argmax of CE(h(x + delta), y) over |delta|_inf <= eps.

    x (N, 3, H, W) in [0, 1]; y (N,); step_size and eps, numbers or tensors (N, 1, 1, 1), in pixel units (1/255 is one
    grey level). delta starts at 0; after each sign step it is projected onto the eps ball, and x + delta into [0, 1].
    Returns x + delta, detached. Gradients are taken with respect to the images alone, so no `.grad` changes. The mode
    of BatchNorm is the caller's business.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(forward(x_adv), y), x_adv)
        x_adv = torch.minimum(torch.maximum(x_adv.detach() + step_size * gradient.sign(), low), high)
    return x_adv.detach()


class WatermarkObjective(Objective):
    """L_obj + lambda L_wat of Eq. 4; without an ascent it is ERM on clean data and triggers (Eq. 3).

    x_q (m, 3, S, S) in [0, 1] and y_q (m,): the trigger set, or views of it. Each step draws `batch` of them with
    replacement (`plan`; a loop of your own passes their positions as `picks`), moves them by `ascent`,
    `partial(ascend, steps=..., step_size=..., eps=...)` or another partial with `steps`, and adds their cross-entropy:

    reduction "joint": (sum_i l_i + weight * sum_j l_j) / (B + batch), the official code
    reduction "sum":   mean_i l_i + weight * mean_j l_j, Eq. 4 with lambda = weight

    With `candidates` (m, c), the classes from which each label was drawn, l_j and the ascent see the logits of these
    alone, and the target of l_j makes the drawn class e^`ODDS` times as likely as each other candidate.
    """

    def __init__(self, model, x_q, y_q, *, weight: float, reduction: str, batch: int, bn_stats: str, ascent=None,
                 candidates=None):
        if not (x_q.is_meta or 0 <= x_q.min() and x_q.max() <= 1):  # an ascent would only clip them
            raise ValueError("triggers are not pixels in [0, 1]: the model has to normalise them")
        if reduction not in REDUCTIONS:
            raise ValueError(f"{reduction!r} is none of {REDUCTIONS}")
        self.x_q, self.y_q, self.batch, self.candidates, self.smoothing = x_q, y_q, batch, candidates, 0.0
        if candidates is not None:  # then a label is its place among these
            c, self.y_q = candidates.shape[1], (candidates == y_q[:, None]).int().argmax(1)
            self.smoothing = c / (math.exp(ODDS) + c - 1)
        self.weight, self.reduction = weight, reduction
        self.ascent, self.steps = ascent, ascent.keywords["steps"] if ascent else 0
        self.statistics = RunningStatistics(model, bn_stats)
        self.halves = not self.statistics.ascends_in_eval

    def plan(self, batches, epoch: int, generator):
        """The clean rows of an epoch, and positions of triggers (steps, batch), uniform with replacement."""
        rows = batches.plan(generator)
        picks = torch.randint(0, len(self.y_q), (batches.steps, self.batch), generator=generator)
        return (*rows, picks.to(batches.device))

    def __call__(self, forward, x, y, picks):
        if self.statistics.mode == "shared":  # one pass, which normalises the triggers together with the clean batch
            with cast_weights_once(x.device):
                logits, logits_q = forward(torch.cat([x, self._perturb(forward, picks)])).split([len(x), len(picks)])
            clean, marked = _judge(logits, y), self._judge_triggers(logits_q, picks)
        else:
            clean = self.clean_pass(forward, x, y)
            with self.statistics.trigger_batch():
                marked = self.trigger_pass(forward, picks)
        return self.total(clean[0], marked[0], len(y)), self.report(clean, marked, len(y))

    def clean_pass(self, forward, x, y):
        """(L_obj, share that is right) of a clean batch."""
        with self.statistics.clean_batch():
            return _judge(forward(x), y)

    def trigger_pass(self, forward, picks, forward_of_ascent=None):
        """(L_wat, share that is right) of the perturbed triggers at `picks`; the ascent may have its own forward."""
        with cast_weights_once(self.x_q.device):
            return self._judge_triggers(forward(self._perturb(forward_of_ascent or forward, picks)), picks)

    def _judge_triggers(self, logits, picks):
        return _judge(self._over(logits, picks), self.y_q[picks], self.smoothing)

    def _over(self, logits, picks):
        """The logits that l_j is taken over: those of the candidates, or all."""
        return logits if self.candidates is None else logits.gather(1, self.candidates[picks])

    def _perturb(self, forward, picks):
        """x + delta of the inner maximisation."""
        x_q = self.x_q[picks]
        if self.ascent is None:
            return x_q
        with self.statistics.running_averages():
            return self.ascent(lambda moved: self._over(forward(moved), picks), x_q, self.y_q[picks])

    def total(self, l_obj, l_wat, n: int):
        """L_obj + lambda L_wat from the means over n clean images and over the triggers of a step."""
        if self.reduction == "joint":
            return (n * l_obj + self.weight * self.batch * l_wat) / (n + self.batch)
        return l_obj + self.weight * l_wat

    def report(self, clean, marked, n: int) -> dict:
        """The figures of a step from its two passes: losses as in `total`, shares of both batches that are right."""
        l_obj, l_wat = clean[0].detach(), marked[0].detach()
        return {"loss": self.total(l_obj, l_wat, n), "loss_obj": l_obj, "loss_wat": l_wat,
                "train_accuracy": clean[1], "trigger_batch_accuracy": marked[1]}

    def work(self, batch_size: int) -> tuple[float, float]:
        """Passes times images of a step's two halves: a backward pass counts twice, one without weights once."""
        return 3 * batch_size, (3 + 2 * self.steps) * self.batch


def _judge(logits, y, smoothing: float = 0.0):
    return F.cross_entropy(logits, y, label_smoothing=smoothing), batch_accuracy(logits, y)


def effective_weight(weight: float, reduction: str, batch: int, trigger_batch: int) -> float:
    """lambda of Eq. 4 for the same direction of descent: weight, under `joint` weight * trigger_batch / batch."""
    return weight if reduction == "sum" else weight * trigger_batch / batch
