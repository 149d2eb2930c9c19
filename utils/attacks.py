"""What a thief minimises: a surrogate's objectives, given the frozen source's answers.

A loss is a function (s, t, y) of surrogate logits (N, C), source logits (N, C) and true labels (N,).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from utils.losses import Objective, Plain, ascend, correct


def kl(s, t, temperature: float = 1.0):
    """D_KL(softmax(t / T) || softmax(s / T)), mean over the batch; no T^2 factor. s, t (N, C)."""
    log_s, log_t = F.log_softmax(s / temperature, dim=1), F.log_softmax(t / temperature, dim=1)
    return F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


def soft(s, t, y=None):
    """Eq. 2: imitate the source's probabilities; true labels are unused."""
    return kl(s, t)


def hard(s, t, y=None):
    """Section 4.1, hard label: cross-entropy with the source's argmax; true labels are unused."""
    return F.cross_entropy(s, t.argmax(1))


def reg(s, t, y, alpha: float):
    """Eq. 5: alpha * KL + (1 - alpha) * cross-entropy with the true label (the paper: alpha = 0.3)."""
    return alpha * kl(s, t) + (1 - alpha) * F.cross_entropy(s, y)


def distill(s, t, y, alpha: float, temperature: float):
    """Eq. 6: (1 - alpha) * cross-entropy + alpha * KL at a temperature (the paper: alpha = 0.7; code: T = 1)."""
    return (1 - alpha) * F.cross_entropy(s, y) + alpha * kl(s, t, temperature)


# name -> (loss, whether it needs true labels in the source's classes)
EXTRACTIONS = {"soft": (soft, False), "hard": (hard, False), "reg": (reg, True), "margin": (soft, False)}
# names of published removal attacks -> (train the last layer alone, re-initialise it)
FINETUNES = {"ftal": (False, False), "ftll": (True, False), "rtal": (False, True), "rtll": (True, True)}
REMOVALS = ("finetune", "fineprune", "prune", "quantize")


class Copy(Objective):
    """Train a surrogate on a frozen source's answers; an objective as in `utils.losses`.

    `source` maps pixels to logits; it is called under `no_grad` and must be in eval mode. `loss` is one of the
    functions above with its numbers filled in. With `steps` the images are first moved to where the source is
    least sure of its own answer within `eps` (Eq. 7; step_size and eps in pixel units), and both models see those.
    """

    def __init__(self, source, loss, needs_labels: bool, steps: int = 0, step_size: float = 0.0, eps: float = 0.0):
        self.source, self.loss, self.needs_labels = source, loss, needs_labels
        self.ascents, self.step_size, self.eps = steps, step_size, eps

    def __call__(self, forward, x, y, picks):
        with torch.no_grad():
            t = self.source(x)
        if self.ascents:
            x = ascend(self.source, x, t.argmax(1), steps=self.ascents, step_size=self.step_size, eps=self.eps)
            with torch.no_grad():
                t = self.source(x)
        s = forward(x)
        loss = self.loss(s, t, y)
        stats = {"loss": loss.detach(), "agreement": correct(s, t.argmax(1))}
        if self.needs_labels:
            stats["train_accuracy"] = correct(s, y)
        return loss, stats


def extraction_loss(attack: str, alpha: float):
    """The loss of `EXTRACTIONS[attack]` and whether it needs labels; `alpha` is used by `reg`."""
    loss, needs_labels = EXTRACTIONS[attack]
    return (partial(loss, alpha=alpha) if attack == "reg" else loss), needs_labels


class FineTune(Plain):
    """Cross-entropy on the thief's labelled images from a copy of the source (Table 9).

    With `last` only the last layer learns: the rest is frozen, BatchNorm's running statistics included.
    """

    def __init__(self, model, last: bool):
        self.frozen = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if last else []
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not last or name.startswith("1.linear."))

    def __call__(self, forward, x, y, picks):
        for layer in self.frozen:
            layer.eval()
        return super().__call__(forward, x, y, picks)
