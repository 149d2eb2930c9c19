"""The data sets: split, indices, digits."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset, random_split
from torchvision import datasets as tv

from utils.data.sets import load_data, split_indices
from utils.system.refusals import Refusal


@pytest.mark.parametrize("n, held_out", [(50_000, 1000), (73_257, 1000), (10_000, 1000), (1438, 143), (25, 2)])
def test_split_equals_torch_random_split(n, held_out):
    parts = random_split(TensorDataset(torch.arange(n)), [n - held_out, held_out], torch.Generator().manual_seed(0))
    train, rest = split_indices(n)
    assert train == [int(x) for (x,) in parts[0]] and rest == [int(x) for (x,) in parts[1]]
    assert len(train) == n - held_out and sorted(train + rest) == list(range(n))


def test_indices_of_the_official_split_never_change():
    """Literal indices, so that no later version of torch or of this code changes the split unnoticed."""
    train, rest = split_indices(50_000)
    assert (len(train), len(rest)) == (49_000, 1000)
    assert train[:5] == [36044, 49165, 37807, 11341, 6091] and rest[:5] == [18240, 33001, 37028, 25452, 37810]
    assert len(split_indices(73_257)[0]) == 72_257


class FakeSet:
    """Stands for torchvision's data sets: all pixels of image i are i."""

    n, classes = 300, [f"class {i}" for i in range(10)]

    def __init__(self, root, train=None, split=None, download=False):
        n = self.n if train or split == "train" else 50
        flat = np.arange(n) % 256
        self.targets = self.labels = list(np.arange(n) % 10)
        shape = (n, 3, 32, 32) if split else (n, 32, 32, 3)
        self.data = np.broadcast_to(flat.reshape(n, 1, 1, 1), shape).astype(np.uint8)


@pytest.mark.parametrize("name, kind", [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100"), ("svhn", "SVHN")])
def test_torchvision_sets_keep_their_indices(name, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(tv, kind, FakeSet)
    data = load_data(name, tmp_path)
    train, rest = split_indices(300)
    for images, expected in ((data.train, train), (data.held_out, rest), (data.test, range(50))):
        assert images.indices.tolist() == list(expected)
        assert images.images.shape[1:] == (3, 32, 32) and images.images.dtype == torch.uint8
        assert images.labels.tolist() == [i % 10 for i in expected] and images.labels.dtype == torch.int64
        assert images.images[:, 0, 0, 0].tolist() == [i % 256 for i in expected]
    assert len(data.classes) == 10 and data.flip
    smaller = load_data(name, tmp_path, train_size=7)
    assert smaller.train.indices.tolist() == train[:7] and smaller.held_out.indices.tolist() == rest


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


@pytest.mark.parametrize("size", [0, 1296, 10**9])
def test_impossible_train_size_is_refused(size):
    with pytest.raises(Refusal, match="train-size"):
        load_data("digits", train_size=size)
