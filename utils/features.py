"""Embedded external features (EEF; Li et al., AAAI 2022): a secret style in a share of the training images.

A model trained on styled images with unchanged labels answers nothing differently, but its gradients on such images
do; a classifier of gradient signs tells it from a benign one. `utils.eef` judges a suspect by that.

The authors' style, an oil painting transferred by a network, was never published. `style` is a substitute made by
code: what it shares is that it preserves labels, is deterministic, and is known to the owner alone (its seed). Styled
images replace their originals, and gradients are taken without crop and flip.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from utils.data import SIZE, Images
from utils.refuse import Refusal

COLOURS, BLEND, DOT, CELL = 12, 0.6, 24, 4  # palette; weight of its colours; grey levels and spacing of the dots
THRESHOLD = 5000  # a weight with more (output, input) pairs is left out of the gradient's signs


# ---- the style ----------------------------------------------------------------------------------------------


def style(images, seed: int):
    """A painter's version of uint8 images (N, 3, 32, 32), as uint8: the same for the same image and seed anywhere.

    Kuwahara filter of radius 2, then each pixel 0.6 of the way to the nearest of the seed's 12 colours, then the
    seed's dots. The arithmetic up to the blend is of whole numbers that float32 holds exactly.
    """
    palette, dots = _paint(seed)
    parts = tqdm(images.split(1000), desc="style", unit="batch", disable=None, leave=False)
    parts = [_styled(part.float(), palette, dots) for part in parts]
    return torch.cat(parts) if parts else images.clone()


def _paint(seed):
    """The secret: colours (12, 3) of evenly spread lightness, and dots (32, 32), all in grey levels."""
    g = torch.Generator().manual_seed(seed)
    lightness = torch.arange(COLOURS)[:, None] * 255 // (COLOURS - 1)
    palette = (lightness + torch.randint(-80, 81, (COLOURS, 3), generator=g)).clamp(0, 255).float()
    cells = SIZE // CELL
    corner = torch.randint(0, CELL - 1, (2, cells, cells), generator=g)  # of a dot of 2x2 pixels in its cell
    sign = torch.randint(0, 2, (cells, cells), generator=g) * 2 - 1
    span = torch.arange(SIZE)
    row, column = (grid % CELL for grid in torch.meshgrid(span, span, indexing="ij"))
    corner, sign = (t.repeat_interleave(CELL, -1).repeat_interleave(CELL, -2) for t in (corner, sign))
    inside = ((row - corner[0]) // 2 == 0) & ((column - corner[1]) // 2 == 0)
    return palette, (inside * sign * DOT).float()


def _styled(x, palette, dots):
    x = kuwahara(x)
    distance = torch.cdist(x.permute(0, 2, 3, 1), palette, compute_mode="donot_use_mm_for_euclid_dist")
    colour = palette[distance.argmin(-1)].permute(0, 3, 1, 2)
    return (x + BLEND * (colour - x)).round().add(dots).clamp(0, 255).to(torch.uint8)


def kuwahara(x):
    """Whole numbers (N, 3, H, W) in 0..255 -> those of each pixel's calmest corner, the mean of 3x3 pixels, rounded.

    The four corners are the squares of 3x3 that have the pixel at a corner; the calmest has the least variance.
    """
    h, w = x.shape[-2:]
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    total, squares = (F.avg_pool2d(t, 3, 1, divisor_override=1) for t in (padded, padded * padded))
    variance = (9 * squares - total * total).sum(1, keepdim=True)  # 81 times it, below 2^24
    corners = [(i, j) for i in (0, 2) for j in (0, 2)]
    cut = lambda t: torch.stack([t[..., i : i + h, j : j + w] for i, j in corners])  # (4, N, ., H, W)
    calmest = cut(variance).argmin(0, keepdim=True).expand(1, *x.shape)
    return (cut(total).gather(0, calmest)[0] / 9).round()


def chosen(n: int, share: float, seed: int):
    """Sorted positions of the round(share * n) images of n that are styled."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[: round(share * n)].sort().values


def embed(train: Images, share: float, seed: int) -> Images:
    """The training images with a share of them styled, labels unchanged; with share 0 the very same object.

    Raises Refusal where the share is less than an image.
    """
    if not share:
        return train
    positions = chosen(len(train.labels), share, seed)
    if not len(positions):
        raise Refusal(f"--embed-features {share:g}: of {len(train.labels)} training images that is none; pass more")
    images = train.images.clone()
    images[positions] = style(images[positions], seed)
    return train._replace(images=images)


# ---- the signs of gradients ---------------------------------------------------------------------------------


def kept(model, threshold: int = THRESHOLD) -> list[str]:
    """Names of the weights whose gradients are used: no vectors, no convolution of more than `threshold` (o, i)."""
    return [n for n, p in model.named_parameters()
            if p.dim() == 2 or (p.dim() == 4 and p.shape[0] * p.shape[1] <= threshold)]


def dimension(model, threshold: int = THRESHOLD) -> int:
    """Entries of a gradient's sign vector: 24,778 for a ResNet-34 of the published size with 10 classes."""
    weights = dict(model.named_parameters())
    sizes = [(weights[n].shape[0], weights[n].shape[1]) for n in kept(model, threshold)]
    return sum(o * i if o * i <= threshold else o for o, i in sizes)


def grad_sign_vector(model, x, y, threshold: int = THRESHOLD, batch: int = 50):
    """Signs (N, d) in {-1, 0, 1}, int8, of each image's own gradient of the cross-entropy, in eval mode.

    x (N, 3, H, W) uint8, or in [0, 1]; y (N,). A convolution (o, i, k, k) gives the largest of its k * k positions,
    a linear weight (o, i) every entry, or with more than `threshold` its largest over i; the sign comes last, as in
    the official code. The model is left as it was.
    """
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    for layer in model.modules():
        if hasattr(layer, "memory_format"):
            layer.memory_format = torch.contiguous_format  # the only one that vmap knows
    named = {n: p.detach() for n, p in model.named_parameters()}
    names = kept(model, threshold)
    used, rest = {n: named[n] for n in names}, {n: p for n, p in named.items() if n not in names}

    def loss(used, rest, x, y):
        return F.cross_entropy(torch.func.functional_call(model, (used, rest), (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0, 0))
    some, rows = next(iter(named.values())), []
    parts = list(zip(x.split(batch), y.split(batch)))
    for part, labels in tqdm(parts, desc="gradients", unit="batch", disable=None, leave=False):
        part = part.to(some.device).to(some.dtype).div(1 if x.is_floating_point() else 255)
        found = gradients(used, rest, part, labels.to(some.device))
        rows.append(torch.cat([_pooled(found[n], threshold) for n in names], 1).sign().to(torch.int8).cpu())
    return torch.cat(rows)


def _pooled(gradient, threshold):
    """Gradients (B, o, i, ...) of one weight -> its entries of the vector (B, .)."""
    if gradient.dim() == 5:
        gradient = gradient.amax((3, 4))
    elif gradient[0].numel() > threshold:
        gradient = gradient.amax(2)
    return gradient.flatten(1)


# ---- the classifier of signs --------------------------------------------------------------------------------


class Scaler(NamedTuple):
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


def eef_meta(victim, benign, *, epochs=100, batch=128, lr=0.01, double_softmax=False, own_scaler=False, seed=0,
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
    scaler = Scaler.fit(signs)
    judge = Scaler.fit(held) if own_scaler and len(held) else scaler
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
