"""--image-size: what depends on the size of images follows it, and 32 pixels keep their bits."""

import argparse
import os

import pytest
import torch
from photos import photos
from torchvision.transforms import functional as T

import models
from utils.data import stored
from utils.data.batches import Batches
from utils.data.images import Images
from utils.data.resizing import resize, resize_parts
from utils.data.sets import load_data
from utils.data.settings import image_size
from utils.data.stored import StoredImages
from utils.rivals.embedded_features.style import style_images
from utils.rivals.randomized_smoothing.trigger_drawing import draw_rs_triggers
from utils.system.refusals import Refusal
from utils.training.metrics import pass_length


@pytest.mark.parametrize("size", [16, 30, 48, 96])
def test_a_folder_is_decoded_at_any_size_and_both_copies_are_kept(tmp_path, size):
    root = photos(tmp_path / "images")
    before, data = load_data("folder", root), load_data("folder", root, size=size)
    assert data.train.images.shape[1:] == (3, size, size) and data.size == size
    assert torch.equal(data.train.labels, before.train.labels)
    assert len(list(root.glob(".decoded-*.npy"))) == 2
    assert torch.equal(load_data("folder", root).train.images, before.train.images)


def test_resizing_halves_by_the_mean_where_the_kernel_is_flat_and_keeps_what_fits():
    images = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert resize(images, 32) is images and (resize(images, 16) == 77).all() and resize(images, 96).shape[-1] == 96
    assert load_data("digits", size=48).test.images.shape == (359, 3, 48, 48)


def test_many_images_are_resized_into_a_file_and_taken_from_it_later(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    parts = [(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(n)) for n in (9, 4)]
    small = resize_parts(parts, 24, tmp_path / "none.npy")
    monkeypatch.setattr(stored, "IN_MEMORY", 1000)
    monkeypatch.setattr(stored, "CHUNK", 2 * 4 * 3 * 24 * 24)
    for again in (False, True):
        if again:
            monkeypatch.setattr("utils.data.resizing._write", None)
        large = resize_parts(parts, 24, tmp_path / ".resized-24.npy")
        assert not isinstance(small[0][0], StoredImages) and isinstance(large[0][0], StoredImages)
        for (images, labels), (expected, same) in zip(large, small):
            assert torch.equal(images[:], expected) and torch.equal(labels, same)
    assert [file.name for file in tmp_path.iterdir()] == [".resized-24.npy"]
    assert resize_parts(parts, 32, tmp_path / "none.npy")[0][0] is parts[0][0]


def test_no_room_for_resized_images_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", 1000)
    with pytest.raises(Refusal, match="--image-size 24: .* cannot be kept in .*; make room"):
        resize_parts([(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.arange(9))], 24, tmp_path / "no" / "x.npy")


def test_mean_and_deviation_are_those_of_the_pixels():
    data = load_data("digits", size=48)
    x = data.train.images.double().div(255)
    assert data.mean == tuple(round(v, 4) for v in x.mean((0, 2, 3)).tolist())
    assert data.std == tuple(round(v, 4) for v in x.std((0, 2, 3)).tolist())


@pytest.mark.parametrize("size", [16, 48])
def test_crops_are_padded_by_an_eighth(size):
    pixels = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8)
    batches = Batches(Images(pixels, torch.arange(8), torch.arange(8)), 8, True)
    order, shift, flip = (part[0] for part in batches.plan(torch.Generator().manual_seed(0)))
    x, _ = batches.batch(order, shift, flip)
    assert 0 <= shift.min() and shift.max() <= size // 4 and shift.max() > size // 8
    for i in range(8):
        picture = T.hflip(pixels[order[i]]) if flip[i] else pixels[order[i]]
        picture = T.crop(T.pad(picture, size // 8), int(shift[i, 0]), int(shift[i, 1]), size, size)
        assert torch.equal(x[i], picture.float().div(255))


@pytest.mark.parametrize("name", models.NAMES)
def test_the_architectures_take_larger_images(name):
    model = models.build(name, 7, width=4, size=64).eval()
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7) and model.size == 64


def test_rivals_draw_at_the_images_size():
    data = load_data("digits", size=48)
    triggers, _ = draw_rs_triggers(data, 5, 4, "text", 0)
    changed = (triggers.images != data.held_out.pick(
        [data.held_out.indices.tolist().index(i) for i in triggers.sources[:, 0].tolist()]).images).any(1)
    assert triggers.images.shape[-1] == 48 and changed.any() and not changed[:, 24:].any()
    styled = style_images(data.test.images[:3, :, :45, :45], 1)
    assert styled.shape == (3, 3, 45, 45) and torch.equal(styled, style_images(data.test.images[:3, :, :45, :45], 1))


def test_passes_take_fewer_large_images():
    assert [pass_length(torch.empty(1, 3, size, size)) for size in (16, 32, 64, 224)] == [4000, 1000, 250, 20]


def test_the_flag_takes_16_to_256_and_32_is_as_if_absent():
    assert (image_size("32"), image_size("96")) == (None, 96)
    for text in ("15", "257", "9.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            image_size(text)


def test_images_are_resized_into_no_file_behind_a_link(tmp_path, monkeypatch):
    other, cache = tmp_path / "other", tmp_path / ".resized-24.npy"
    other.write_bytes(b"mine")
    monkeypatch.setattr(stored, "IN_MEMORY", 1000)
    for link in (cache, cache.with_suffix(f".{os.getpid()}")):
        link.symlink_to(other)
    parts = [(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.arange(9))]
    assert (resize_parts(parts, 24, cache)[0][0][:] == 0).all()
    assert other.read_bytes() == b"mine" and not cache.is_symlink()
