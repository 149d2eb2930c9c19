"""Predictions and accuracies over many images."""

import torch

from utils.system.machine import autocast


def pass_length(images, of_32_pixels: int = 1000) -> int:
    """Images in one forward pass: together as many pixels as `of_32_pixels` images of 32 x 32 have."""
    return max(1, of_32_pixels * 32**2 // images.shape[-1] ** 2)


@torch.no_grad()
def predict(model, images, batch_size: int | None = None, amp: torch.dtype | None = None):
    """Logits (N, C) in float32 of uint8 images (N, 3, S, S), in eval mode; the model's mode is restored afterwards.

    images      a tensor or `StoredImages`, moved to the model's device batch by batch
    batch_size  images of a batch, None for `pass_length`
    amp         bf16 or fp16 of autocast, None: full precision
    """
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    logits = []
    for part in images.split(batch_size or pass_length(images)):
        x = part.to(parameter.device).to(parameter.dtype).div(255)
        with autocast(x.device.type, amp):
            logits.append(model(x).float())
    model.train(was_training)
    return torch.cat(logits)


def count_hits(logits, labels) -> int:
    """How many of the logits (N, C) have their largest entry at labels (N,)."""
    return int((logits.argmax(1) == labels.to(logits.device)).sum())


def accuracy(model, images, labels, amp: torch.dtype | None = None) -> float:
    """Share in [0, 1] of images (N, 3, S, S) uint8 that the model gives their labels (N,)."""
    return count_hits(predict(model, images, amp=amp), labels) / len(labels)


def accuracies(model, amp: torch.dtype | None, **sets) -> dict:
    """{NAME_accuracy: share in [0, 1]} for each set NAME of `images` and `labels`; one that is None is left out."""
    return {f"{name}_accuracy": accuracy(model, of.images, of.labels, amp)
            for name, of in sets.items() if of is not None}
