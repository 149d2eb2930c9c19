"""TODO (utils.features)"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm


class SignScaler(NamedTuple):
    """Rows to unit length, then each feature to mean 0 and deviation 1 of the rows it was fitted to (d,)."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def fit(cls, signs, part: int = 500):
        """Of signs (N, d); a feature that never varies keeps its scale."""
        total = squares = 0.0
        for rows in signs.split(part):
            unit = F.normalize(rows.double())
            total, squares = total + unit.sum(0), squares + (unit * unit).sum(0)
        mean = total / len(signs)
        std = (squares / len(signs) - mean * mean).clamp_min(0).sqrt()
        return cls(mean.float(), torch.where(std > 1e-7, std, torch.ones_like(std)).float())

    def __call__(self, signs):
        return (F.normalize(signs.float()) - self.mean.to(signs.device)) / self.std.to(signs.device)


def meta_loss(logits, y, double_softmax: bool = False):
    """Cross-entropy; the official one takes the softmax of the softmax and cannot fall below ln(1 + 1/e) = 0.3133."""
    return F.cross_entropy(logits.softmax(1) if double_softmax else logits, y)


def train_classifier(victim, benign, *, epochs=100, batch=128, lr=0.01, double_softmax=False, own_scaler=False, seed=0,
             device="cpu"):
    """The classifier of sign vectors, and its scaler: (MLP d -> d/8 -> d/16 -> 2 of scaled signs, Scaler).

    victim, benign (N, d) int8: signs of the same N images. The model of the best epoch on a fifth of the images is
    kept (a later one wins a tie), learned from the others. With `own_scaler` this fifth is scaled by itself, as in
    the official code.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(victim), generator=generator)
    learn, check = order[: max(1, round(0.8 * len(order)))], order[round(0.8 * len(order)) :]
    signs, held = (torch.cat([benign[part], victim[part]]) for part in (learn, check))
    labels, held_labels = (torch.arange(2).repeat_interleave(len(part)) for part in (learn, check))
    scaler = SignScaler.fit(signs)
    judge = SignScaler.fit(held) if own_scaler and len(held) else scaler
    d = signs.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(d, max(1, d // 8)), nn.ReLU(),
                              nn.Linear(max(1, d // 8), max(1, d // 16)), nn.ReLU(), nn.Linear(max(1, d // 16), 2))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    best, weights = -1.0, None
    for _ in tqdm(range(epochs), desc="classifier", unit="epoch", disable=None, leave=False):
        for rows in torch.randperm(len(signs), generator=generator).split(batch):
            loss = meta_loss(model(scaler(signs[rows].to(device))), labels[rows].to(device), double_softmax)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = float(((posterior(model, judge, held) > 0.5).long() == held_labels).float().mean()) if len(held) else 0
        if right >= best:
            best, weights = right, {n: t.clone() for n, t in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval(), scaler


@torch.no_grad()
def posterior(model, scaler, signs):
    """Probability (N,) in float64 that signs (N, d) are the victim's; `scaler` None judges raw signs."""
    device = next(model.parameters()).device
    parts = [part.to(device) for part in signs.split(500)]
    return torch.cat([model(scaler(p) if scaler else p.float()).double().softmax(1)[:, 1].cpu() for p in parts])
