"""The data sets: split, indices, digits, and what depends on the size of images."""

import argparse
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import random_split
from torchvision import datasets as tv

from utils.data.sets import image_size, load_data, split_indices


@pytest.mark.parametrize("n, held_out", [(50_000, 1000), (73_257, 1000), (1438, 143), (25, 2)])
def test_split_equals_torch_random_split(n, held_out):
    parts = random_split(range(n), [n - held_out, held_out], torch.Generator().manual_seed(0))
    train, rest = split_indices(n)
    assert train == list(parts[0]) and rest == list(parts[1])
    assert n != 50_000 or (train[:3], rest[:3]) == ([36044, 49165, 37807], [18240, 33001, 37028])  # in any torch


class FakeSet:
    """Stands for torchvision's data sets: all pixels of image i are i."""

    n, classes = 300, [f"class {i}" for i in range(10)]

    def __init__(self, root, train=None, split=None, download=False):
        n = self.n if train or split == "train" else 50
        flat = np.arange(n) % 256
        self.targets = self.labels = list(np.arange(n) % 10)
        shape = (n, 3, 32, 32) if split else (n, 32, 32, 3)
        self.data = np.broadcast_to(flat.reshape(n, 1, 1, 1), shape).astype(np.uint8)


@pytest.mark.parametrize("name, kind, mean, std", [
    ("cifar10", "CIFAR10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("cifar100", "CIFAR100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ("svhn", "SVHN", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
def test_torchvision_sets_keep_their_indices_and_are_normalised_as_in_the_official_code(name, kind, mean, std,
                                                                                        monkeypatch, tmp_path):
    monkeypatch.setattr(tv, kind, FakeSet)
    data = load_data(name, tmp_path)
    train, rest = split_indices(300)
    for images, expected in ((data.train, train), (data.held_out, rest), (data.test, range(50))):
        assert images.indices.tolist() == list(expected)
        assert images.images.shape[1:] == (3, 32, 32) and images.images.dtype == torch.uint8
        assert images.labels.tolist() == [i % 10 for i in expected] and images.labels.dtype == torch.int64
        assert images.images[:, 0, 0, 0].tolist() == [i % 256 for i in expected]
    assert len(data.classes) == 10 and data.flip and (data.mean, data.std) == (mean, std)
    smaller = load_data(name, tmp_path, train_size=7, image_size=16)
    assert smaller.train.indices.tolist() == train[:7] and smaller.held_out.indices.tolist() == rest
    assert smaller.train.images[:, 2, 15, 15].tolist() == [i % 256 for i in train[:7]] and smaller.size == 16


def test_digits_data_set():
    data = load_data("digits")
    assert (len(data.train.labels), len(data.held_out.labels), len(data.test.labels)) == (1295, 143, 359)
    assert data.classes == [str(i) for i in range(10)] and not data.flip
    for images in (data.train, data.held_out, data.test):
        assert images.images.dtype == torch.uint8 and images.images.shape[1:] == (3, 32, 32)
        assert torch.equal(images.images[:, 0], images.images[:, 2])
    assert data.train.images.min() == 0 and data.train.images.max() > 250
    x = data.train.images.double() / 255
    assert data.mean == pytest.approx(x.mean(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert data.std == pytest.approx(x.std(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert not set(data.train.indices.tolist()) & set(data.held_out.indices.tolist())


def test_the_flag_takes_16_to_256_and_32_is_as_if_absent():
    assert (image_size("32"), image_size("96")) == (None, 96)
    for text in ("15", "257", "9.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            image_size(text)


@pytest.mark.parametrize("part", ["train", "held_out"])
@pytest.mark.parametrize("field", ["images", "labels", "indices"])
def test_the_digest_is_of_images_labels_and_indices_of_both_parts(part, field):
    data = load_data("digits", train_size=30)
    changed = getattr(data, part)._replace(**{field: getattr(getattr(data, part), field).flip(0)})
    assert dataclasses.replace(data, **{part: changed}).sha256 != data.sha256
