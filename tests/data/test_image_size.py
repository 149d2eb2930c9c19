"""--image-size: what depends on the size of images follows it."""

import argparse

import pytest
import torch

from utils.data.sets import image_size, load_data
from utils.rivals.embedded_features import style_images
from utils.rivals.randomized_smoothing import draw_rs_triggers


def test_rivals_draw_at_the_images_size():
    data = load_data("digits", image_size=48)
    triggers, _ = draw_rs_triggers(data, 5, 4, "text", 0)
    changed = (triggers.images != data.held_out.pick(
        [data.held_out.indices.tolist().index(i) for i in triggers.sources[:, 0].tolist()]).images).any(1)
    assert triggers.images.shape[-1] == 48 and changed.any() and not changed[:, 24:].any()
    styled = style_images(data.test.images[:3, :, :45, :45], 1)
    assert styled.shape == (3, 3, 45, 45) and torch.equal(styled, style_images(data.test.images[:3, :, :45, :45], 1))


def test_the_flag_takes_16_to_256_and_32_is_as_if_absent():
    assert (image_size("32"), image_size("96")) == (None, 96)
    for text in ("15", "257", "9.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            image_size(text)
