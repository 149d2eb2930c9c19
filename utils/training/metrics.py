"""The one place where logits meet labels."""

import torch


@torch.no_grad()
def predict(model, images, batch_size: int = 1000, amp: bool = False):
    """Logits (N, C) in float32 of uint8 images (N, 3, 32, 32), in eval mode; the model's mode is restored afterwards.

    Images are moved to the model's device batch by batch. With `amp` the forward pass runs under bf16 autocast.
    """
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    logits = []
    for part in images.split(batch_size):
        x = part.to(parameter.device).to(parameter.dtype).div(255)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            logits.append(model(x).float())
    model.train(was_training)
    return torch.cat(logits)


def count_hits(logits, labels) -> int:
    """How many of the logits (N, C) have their largest entry at labels (N,)."""
    return int((logits.argmax(1) == labels.to(logits.device)).sum())


def accuracy(model, images, labels, amp: bool = False) -> float:
    """Share in [0, 1] of images (N, 3, 32, 32) uint8 that the model gives their labels (N,)."""
    return count_hits(predict(model, images, amp=amp), labels) / len(labels)
