"""EEF's secret style (Li et al., AAAI 2022): a share of the training images is replaced by styled versions.

Departure from the paper: the authors' style, an oil painting transferred by a network, was never published. The style
here is a substitute made by code. It shares these properties with theirs: it preserves labels, is deterministic, and
only the owner knows it (its seed). Styled images replace their originals and keep their labels.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils.data.files import SIZE, replace_images
from utils.data.sets import Images
from utils.system.refusals import Refusal

COLOURS, BLEND, DOT, CELL = 12, 0.6, 24, 4  # colours of the palette and their weight; dots: grey levels, spacing


def style_images(images, seed: int):
    """Painted versions of uint8 images (N, 3, S, S), as uint8; equal on every machine for the same image and seed.

    A Kuwahara filter of radius 2; then each pixel moves 0.6 of the way to the nearest of the seed's 12 colours; then
    the seed's dots are added. Up to the blend all numbers are whole and exact in float32.
    """
    palette, dots = _palette_and_dots(seed, images.shape[-1])
    parts = tqdm(images.split(1000), desc="style", unit="batch", disable=None, leave=False)
    parts = [_style_batch(part.float(), palette, dots) for part in parts]
    return torch.cat(parts) if parts else images.clone()


def _palette_and_dots(seed, size: int = SIZE):
    """The secret: colours (12, 3) of evenly spaced lightness, and dots (size, size), both in grey levels."""
    g = torch.Generator().manual_seed(seed)
    lightness = torch.arange(COLOURS)[:, None] * 255 // (COLOURS - 1)
    palette = (lightness + torch.randint(-80, 81, (COLOURS, 3), generator=g)).clamp(0, 255).float()
    cells = -(-size // CELL)
    corner = torch.randint(0, CELL - 1, (2, cells, cells), generator=g)  # of the dot of 2x2 pixels in each cell
    sign = torch.randint(0, 2, (cells, cells), generator=g) * 2 - 1
    span = torch.arange(cells * CELL)
    row, column = (grid % CELL for grid in torch.meshgrid(span, span, indexing="ij"))
    corner, sign = (t.repeat_interleave(CELL, -1).repeat_interleave(CELL, -2) for t in (corner, sign))
    inside = ((row - corner[0]) // 2 == 0) & ((column - corner[1]) // 2 == 0)
    return palette, (inside * sign * DOT).float()[:size, :size]


def _style_batch(x, palette, dots):
    x = kuwahara(x)
    distance = torch.cdist(x.permute(0, 2, 3, 1), palette, compute_mode="donot_use_mm_for_euclid_dist")
    colour = palette[distance.argmin(-1)].permute(0, 3, 1, 2)
    return (x + BLEND * (colour - x)).round().add(dots).clamp(0, 255).to(torch.uint8)


def kuwahara(x):
    """Kuwahara filter: x (N, 3, H, W), whole numbers in 0..255, -> the same shape, rounded to whole numbers.

    A pixel becomes the mean of one of the four 3x3 squares that have it at a corner, the one with the least variance.
    """
    h, w = x.shape[-2:]
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    total, squares = (F.avg_pool2d(t, 3, 1, divisor_override=1) for t in (padded, padded * padded))
    variance = (9 * squares - total * total).sum(1, keepdim=True)  # 81 times the variance, below 2^24
    corners = [(i, j) for i in (0, 2) for j in (0, 2)]
    cut = lambda t: torch.stack([t[..., i : i + h, j : j + w] for i, j in corners])  # (4, N, ., H, W)
    smoothest = cut(variance).argmin(0, keepdim=True).expand(1, *x.shape)
    return (cut(total).gather(0, smoothest)[0] / 9).round()


def styled_positions(n: int, share: float, seed: int):
    """Sorted positions of the round(share * n) of n images that are styled."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[: round(share * n)].sort().values


def embed_style(train: Images, share: float, seed: int) -> Images:
    """The training images, a share of them styled, with their labels; `train` itself where the share is 0.

    Raises Refusal where the share rounds to no image.
    """
    if not share:
        return train
    positions = styled_positions(len(train.labels), share, seed)
    if not len(positions):
        raise Refusal(f"--embed-features {share:g}: of {len(train.labels)} training images that is none; pass more")
    styled = style_images(train.images[positions], seed)
    return train._replace(images=replace_images(train.images, positions, styled))
