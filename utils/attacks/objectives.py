"""What a thief's training minimises: extraction from a source's answers, and fine-tuning of a copy."""

import torch
from torch import nn

import models
from utils.training.objective import Objective, PlainObjective, batch_accuracy, ewe_adam
from utils.watermark.ascent import ascend

# published fine-tuning attacks -> (train the last layer alone, re-initialise it)
FINETUNES = {"ftal": (False, False), "ftll": (True, False), "rtal": (False, True), "rtll": (True, True)}
REMOVALS = ("finetune", "fineprune", "prune", "quantize")


class ExtractionObjective(Objective):
    """Train a surrogate on the answers of a frozen source.

    source  pixels -> logits; called under `no_grad`, must be in eval mode
    loss    one of `attacks.losses` with its numbers filled in
    steps   of ascent that first move each image, within `eps`, to where the source is least sure of its own answer;
            both models see the moved images (Eq. 7; step_size and eps in pixel units)
    adam    constant rate of Adam; None: SGD with the falling rate of the paper
    """

    def __init__(self, source, loss, needs_labels: bool, steps: int = 0, step_size: float = 0.0, eps: float = 0.0,
                 adam: float | None = None):
        self.source, self.loss, self.needs_labels = source, loss, needs_labels
        self.ascents, self.step_size, self.eps, self.adam = steps, step_size, eps, adam
        self.static = adam is None  # Adam's count of steps has not been tried in a recording

    def optimizer(self, parameters, lr, weight_decay, fused):
        """SGD, or Adam with the betas and eps of EWE's authors."""
        if self.adam is None:
            return super().optimizer(parameters, lr, weight_decay, fused)
        return ewe_adam(parameters, lr, weight_decay, fused)

    def rate(self, lr, epoch, epochs):
        """The falling rate of SGD, or Adam's constant one."""
        return super().rate(lr, epoch, epochs) if self.adam is None else self.adam

    def __call__(self, forward, x, y, picks):
        with torch.no_grad():
            t = self.source(x)
        if self.ascents:
            x = ascend(self.source, x, t.argmax(1), steps=self.ascents, step_size=self.step_size, eps=self.eps)
            with torch.no_grad():
                t = self.source(x)
        s = forward(x)
        loss = self.loss(s, t, y)
        stats = {"loss": loss.detach(), "agreement": batch_accuracy(s, t.argmax(1))}
        if self.needs_labels:
            stats["train_accuracy"] = batch_accuracy(s, y)
        return loss, stats


class FineTuningObjective(PlainObjective):
    """Cross-entropy on the thief's labelled images from a copy of the source (Table 9).

    With `last` only the last layer learns: the rest is frozen, BatchNorm's running statistics included.
    """

    def __init__(self, model, last: bool):
        self.frozen = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if last else []
        head = models.last_linear(model)[0] if last else ""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not last or name.startswith(f"{head}."))

    def __call__(self, forward, x, y, picks):
        for layer in self.frozen:
            layer.eval()
        return super().__call__(forward, x, y, picks)
