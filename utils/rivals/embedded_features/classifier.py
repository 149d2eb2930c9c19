"""EEF's classifier of gradient signs, which distinguishes the victim model from a benign one.

Departures from the authors' code, which arguments undo: the loss takes logits, not a softmax of a softmax; the scaler
of the training signs is kept and also applied to the suspects' signs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm


class SignScaler(NamedTuple):
    """Scales rows of signs (N, d) to unit length, then each feature to mean 0 and standard deviation 1.

    mean, std  (d,), of the rows that the scaler was fitted to
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def fit(cls, signs, part: int = 500):
        """The scaler of signs (N, d), computed `part` rows at a time; a feature that never varies is not scaled."""
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
    """Cross-entropy of logits (N, 2) and labels (N,), a scalar.

    The authors' code (`double_softmax`) takes the softmax twice; that loss cannot fall below ln(1 + 1/e) = 0.3133.
    """
    return F.cross_entropy(logits.softmax(1) if double_softmax else logits, y)


def train_classifier(victim, benign, *, epochs=100, batch=128, lr=0.01, double_softmax=False, own_scaler=False,
                     seed=0, device="cpu"):
    """(classifier, `SignScaler`): an MLP d -> d/8 -> d/16 -> 2 of scaled signs; class 1 is the victim.

    victim, benign (N, d) int8: signs of the same N images under the two models. The classifier trains on four fifths
    of the images; returned is the model of the epoch that is best on the other fifth, the last one of a tie. With
    `own_scaler` that fifth is scaled by its own mean and standard deviation, as in the authors' code.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(victim), generator=generator)
    learn, check = order[: max(1, round(0.8 * len(order)))], order[round(0.8 * len(order)) :]
    signs, held = (torch.cat([benign[part], victim[part]]) for part in (learn, check))
    labels, held_labels = (torch.arange(2).repeat_interleave(len(part)) for part in (learn, check))
    scaler = SignScaler.fit(signs)
    held_scaler = SignScaler.fit(held) if own_scaler and len(held) else scaler
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
        share = _right_share(model, held_scaler, held, held_labels) if len(held) else 0
        if share >= best:
            best, weights = share, {n: t.clone() for n, t in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval(), scaler


def _right_share(model, scaler, signs, labels) -> float:
    return float(((posterior(model, scaler, signs) > 0.5).long() == labels).float().mean())


@torch.no_grad()
def posterior(model, scaler, signs):
    """Probability (N,), float64 in [0, 1], that signs (N, d) are the victim's; with `scaler` None of unscaled signs."""
    device = next(model.parameters()).device
    parts = [part.to(device) for part in signs.split(500)]
    return torch.cat([model(scaler(p) if scaler else p.float()).double().softmax(1)[:, 1].cpu() for p in parts])
