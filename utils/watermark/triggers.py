"""The secret trigger set (section 3.1, appendix B.3).

Triggers are held-out images, or means of k of them, under labels that none of their sources has.
"""

import math
from typing import NamedTuple

import torch

from utils.data.images import Data, Images
from utils.system.refusals import Refusal

LABEL_STRATEGIES = ("random", "highest", "lowest")


class TriggerSet(NamedTuple):
    """m triggers of k source images each.

    images       uint8 (m, 3, 32, 32)
    labels       int64 (m,), the assigned labels
    true_labels  int64 (m, k), the labels of the source images
    sources      int64 (m, k), their indices in the original training set

    The last two are empty, (m, 0), where a foreign checkpoint does not hold them.
    """

    images: torch.Tensor
    labels: torch.Tensor
    true_labels: torch.Tensor
    sources: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def on(self, device):
        """(x, y) on a device: x float (m, 3, 32, 32) in [0, 1], y int64 (m,) the assigned labels."""
        return self.images.to(device).float().div(255), self.labels.to(device)


def draw_triggers(held_out: Images, m: int, k: int, classes: int, seed: int, strategy="random",
                  predict=None) -> tuple[TriggerSet, Images]:
    """Draw a trigger set; returns (TriggerSet, the validation images that are left).

    m * k of the held-out images are taken without replacement. The assigned label is uniform over the classes
    that are no true label of the k sources (`random`, section 3.1), or the most / least confident of those under
    `predict` (`highest`, `lowest`, section 4.4), a function of uint8 images -> logits. An image is the mean of
    its k sources (appendix B.3), rounded to 8 bits. Raises Refusal where m, k or the class count is impossible.
    """
    if m < 1 or k < 1:
        raise Refusal(f"-nq {m} -nm {k}: both must be 1 or more")
    if k >= classes:
        raise Refusal(f"-nm {k}: with {classes} classes no label may be left outside the true ones; pass -nm below it")
    if m * k >= len(held_out.labels):
        raise Refusal(
            f"-nq {m} with -nm {k} takes {m * k} of the {len(held_out.labels)} held-out images and leaves none for "
            f"validation; pass -nq {max(1, (len(held_out.labels) - 1) // k)} or fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(held_out.labels), generator=generator)
    taken = order[: m * k].view(m, k)
    true_labels = held_out.labels[taken]
    images = held_out.images[taken].double().mean(dim=1).round().to(torch.uint8)

    scores = torch.rand(m, classes, generator=generator, dtype=torch.float64)  # the position of the largest is uniform
    if strategy != "random":
        scores = predict(images).double().cpu() * (1 if strategy == "highest" else -1)
        if scores.shape[1] != classes:
            raise Refusal(f"--label-model answers with {scores.shape[1]} classes, the data set has {classes}")
    labels = _best_wrong_label(scores, true_labels)
    triggers = TriggerSet(images, labels, true_labels, held_out.indices[taken])
    return triggers, held_out.pick(order[m * k :])


def _best_wrong_label(scores, true_labels):
    forbidden = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, true_labels, True)
    return scores.masked_fill(forbidden, -math.inf).argmax(1)


def redraw_labels(true_labels, classes: int, seed: int, held_out: int):
    """The labels (m,) that `draw_triggers` draws with this seed for triggers of these true labels (m, k).

    `held_out` is the number of images that the triggers were drawn from.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.randperm(held_out, generator=generator)
    scores = torch.rand(len(true_labels), classes, generator=generator, dtype=torch.float64)
    return _best_wrong_label(scores, true_labels)


def validation_images(data: Data, triggers: TriggerSet) -> Images:
    """The held-out images that are no source of the trigger set."""
    return data.held_out.pick(torch.isin(data.held_out.indices, triggers.sources, invert=True).nonzero().flatten())
