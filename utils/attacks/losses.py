"""The losses of a surrogate (Eqs. 2, 5 and 6).

A loss is a function (s, t, y) of the surrogate's logits (N, C), the source's logits (N, C) and the true labels (N,).
"""

from functools import partial

import torch.nn.functional as F


def kl_divergence(s, t, temperature: float = 1.0):
    """D_KL(softmax(t / T) || softmax(s / T)), mean over the batch; no T^2 factor. s, t (N, C)."""
    log_s, log_t = F.log_softmax(s / temperature, dim=1), F.log_softmax(t / temperature, dim=1)
    return F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


def soft_loss(s, t, y=None):
    """Eq. 2: imitate the source's probabilities; true labels are unused."""
    return kl_divergence(s, t)


def hard_loss(s, t, y=None):
    """Section 4.1, hard label: cross-entropy with the source's argmax; true labels are unused."""
    return F.cross_entropy(s, t.argmax(1))


def reg_loss(s, t, y, alpha: float):
    """Eq. 5: alpha * KL + (1 - alpha) * cross-entropy with the true label (the paper: alpha = 0.3)."""
    return alpha * kl_divergence(s, t) + (1 - alpha) * F.cross_entropy(s, y)


def distill_loss(s, t, y, alpha: float, temperature: float):
    """Eq. 6: (1 - alpha) * cross-entropy + alpha * KL at a temperature (the paper: alpha = 0.7; code: T = 1)."""
    return (1 - alpha) * F.cross_entropy(s, y) + alpha * kl_divergence(s, t, temperature)


# attack -> (loss, whether it needs true labels in the source's classes)
EXTRACTIONS = {
    "soft": (soft_loss, False),
    "hard": (hard_loss, False),
    "reg": (reg_loss, True),
    "margin": (soft_loss, False),
}


def extraction_loss(attack: str, alpha: float):
    """(loss of `EXTRACTIONS[attack]`, whether it needs true labels); `alpha` is for `reg`."""
    loss, needs_labels = EXTRACTIONS[attack]
    return (partial(loss, alpha=alpha) if attack == "reg" else loss), needs_labels
