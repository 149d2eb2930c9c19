"""Embedded external features: the style and the images that carry it."""

import pytest
import torch

from utils.data.sets import load_data
from utils.rivals.embedded_features.style import (
    DOT,
    _palette_and_dots,
    embed_style,
    kuwahara,
    style_images,
    styled_positions,
)
from utils.system.refusals import Refusal


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", train_size=200)


def slow_kuwahara(image):
    """The definition, pixel by pixel: image (3, H, W) int64, edges repeated."""
    h, w = image.shape[1:]
    result = torch.zeros(image.shape)
    for i in range(h):
        for j in range(w):
            best = None
            for di in (-2, 0):
                for dj in (-2, 0):
                    rows = [min(max(i + di + k, 0), h - 1) for k in range(3)]
                    columns = [min(max(j + dj + k, 0), w - 1) for k in range(3)]
                    window = image[:, rows][:, :, columns].double().flatten(1)
                    spread = float(window.var(1, correction=0).sum())
                    if best is None or spread < best[0] - 1e-9:
                        best = spread, window.mean(1)
            result[:, i, j] = best[1].round()
    return result


def test_kuwahara_is_its_definition_and_keeps_edges():
    noise = torch.randint(0, 256, (2, 3, 9, 7))
    slow = torch.stack([slow_kuwahara(image) for image in noise])
    assert torch.equal(kuwahara(noise.float()), slow)
    edge = torch.zeros(1, 3, 12, 12)
    edge[..., 5:] = 200.0
    assert torch.equal(kuwahara(edge), edge)  # a mean filter would blur it
    speck = torch.zeros(1, 3, 12, 12)
    speck[..., 5, 5] = 255.0
    assert torch.equal(kuwahara(speck), (speck / 9).round())  # only windows that hold it spread it


def test_style_is_deterministic_and_depends_on_the_seed(digits):
    images, torch_state = digits.train.images, torch.get_rng_state()
    styled = style_images(images, 7)
    assert styled.dtype == torch.uint8 and styled.shape == images.shape
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(styled, style_images(images, 7)) and torch.equal(styled[3:5], style_images(images[3:5], 7))
    other = style_images(images, 8)
    assert (styled != other).float().mean() > 0.5 and (styled != images).float().mean() > 0.5
    assert style_images(images[:0], 7).shape == (0, 3, 32, 32)


def test_style_of_a_flat_image_by_hand():
    palette, dots = _palette_and_dots(3)
    flat = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    nearest = palette[((palette - 90) ** 2).sum(1).argmin()]
    painted = (0.4 * 90 + 0.6 * nearest).round()[:, None, None] + dots
    assert torch.equal(style_images(flat, 3)[0].float(), painted.clamp(0, 255))
    assert len(palette) == 12 and palette.min() >= 0 and palette.max() <= 255
    assert dots.unique().tolist() == [-DOT, 0, DOT]
    cells = dots.view(8, 4, 8, 4).transpose(1, 2).flatten(2)
    assert bool(((cells != 0).sum(2) == 4).all())  # one dot of four pixels a cell


@pytest.mark.parametrize("share, count", [(0.1, 20), (0.013, 3), (1.0, 200)])
def test_embed_style_replaces_a_share_of_images_and_no_label(digits, share, count):
    train = digits.train
    made = embed_style(train, share, 5)
    changed = (made.images != train.images).flatten(1).any(1)
    assert int(changed.sum()) == count
    assert torch.equal(made.labels, train.labels) and torch.equal(made.indices, train.indices)
    assert changed.nonzero()[:, 0].tolist() == styled_positions(200, share, 5).tolist()
    assert torch.equal(made.images[changed], style_images(train.images[changed], 5))
    assert torch.equal(made.images, embed_style(train, share, 5).images)
    if share < 1:
        assert styled_positions(200, share, 6).tolist() != styled_positions(200, share, 5).tolist()


def test_embed_style_with_share_zero_returns_the_same_object(digits):
    assert embed_style(digits.train, 0.0, 5) is digits.train
    with pytest.raises(Refusal, match="--embed-features 0.001"):
        embed_style(digits.train, 0.001, 5)
