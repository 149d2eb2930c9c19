"""The official code's training steps, written again as literally as possible; for the benchmark and its test only.

They compute what the published code computes, in the way in which it computes it: contiguous fp32; an ascent that
back-propagates to all weights and discards those gradients; a teacher whose gradients stay enabled; plain SGD, one
parameter at a time; numbers fetched from the device at every step; images decoded and augmented one by one in two
loader processes; and the whole trigger set evaluated again with every batch of validation and test images.

x is (B, 3, 32, 32) in [0, 1], y (B,); triggers are x_q (b, 3, 32, 32) and y_q (b,). No training uses this file.
"""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


def plain_sgd(model, lr: float, weight_decay: float):
    """The official optimiser: SGD without momentum, updating one parameter at a time."""
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay, foreach=False, fused=False)


def watermark_step(model, optimizer, x, y, x_q, y_q, *, weight: float, steps: int, step_size: float):
    """One step of the margin method (Eq. 4), or of ERM with triggers (Eq. 3) where `steps` is 0.

    Returns (loss, accuracy, trigger loss, trigger accuracy) as numbers. step_size is in pixel units.
    """
    model.train()
    logits = model(x)
    delta = torch.zeros_like(x_q)
    for _ in range(steps):
        delta.requires_grad_()
        F.cross_entropy(model(x_q + delta), y_q).backward()
        with torch.no_grad():
            delta = delta + step_size * delta.grad.sign()
            delta = (x_q + delta).clamp(0, 1) - x_q
        optimizer.zero_grad()
    logits_q = model((x_q + delta).detach())
    losses = F.cross_entropy(logits, y, reduction="none")
    losses_q = F.cross_entropy(logits_q, y_q, reduction="none")
    optimizer.zero_grad()
    torch.cat([losses, weight * losses_q]).mean().backward()
    optimizer.step()
    return (
        losses.mean().item(),
        (logits.argmax(1) == y).float().mean().item(),
        losses_q.mean().item(),
        (logits_q.argmax(1) == y_q).float().mean().item(),
    )


def soft_step(model, teacher, optimizer, x, y):
    """One step of soft extraction (Eq. 2): (loss, accuracy). The teacher is in eval mode with gradients enabled."""
    model.train()
    logits, answers = model(x), teacher(x)
    loss = F.kl_div(F.log_softmax(logits, dim=1), F.softmax(answers, dim=1), reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), (logits.argmax(1) == y).float().mean().item()


def evaluate(model, images, labels, x_q, y_q, batch_size: int = 128):
    """(accuracy, trigger accuracy) on images (N, 3, 32, 32) in [0, 1]; every batch evaluates the whole trigger set."""
    model.eval()
    right = trigger_right = batches = 0
    with torch.no_grad():
        for x, y in zip(images.split(batch_size), labels.split(batch_size)):
            right += (model(x).argmax(1) == y).sum().item()
            trigger_right += (model(x_q).argmax(1) == y_q).float().mean().item()
            batches += 1
    return right / len(labels), trigger_right / batches


class Pictures(Dataset):
    """uint8 images (N, 3, 32, 32) and labels (N,): items are decoded by PIL, flipped and cropped, one at a time."""

    def __init__(self, images, labels):
        from torchvision import transforms

        self.pixels, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4), transforms.ToTensor()]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def loader(images, labels, batch_size: int) -> DataLoader:
    """The official loader of uint8 images: two processes, shuffled, without the last partial batch."""
    pictures = Pictures(images, labels)
    return DataLoader(pictures, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=2, pin_memory=False)
