"""What the training loop measures after each epoch."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from utils.data.sets import Images
from utils.training.metrics import accuracy


class Evaluation(NamedTuple):
    """`evaluation(model)`: accuracies in [0, 1] on validation images and, once they exist, on the triggers.

    `triggers` is a function without arguments that gives the trigger set, or None before it is made.
    """

    validation: Images
    triggers: Callable
    amp: torch.dtype | None = None

    def __call__(self, model) -> dict:
        figures = {"val_accuracy": accuracy(model, self.validation.images, self.validation.labels, self.amp)}
        if (triggers := self.triggers()) is not None:
            figures["trigger_accuracy"] = accuracy(model, triggers.images, triggers.labels, self.amp)
        return figures
