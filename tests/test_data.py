"""The split, the augmentation and the loaders, against torch's and torchvision's own."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset, random_split
from torchvision import datasets as tv
from torchvision.transforms import functional as T

from utils.data.batches import Batches
from utils.data.folder import decode_image
from utils.data.images import Images
from utils.data.sets import load_data, split_indices
from utils.system.refusals import Refusal


@pytest.mark.parametrize("n, held_out", [(50_000, 1000), (73_257, 1000), (10_000, 1000), (1438, 143), (25, 2)])
def test_split_is_random_split(n, held_out):
    parts = random_split(TensorDataset(torch.arange(n)), [n - held_out, held_out], torch.Generator().manual_seed(0))
    train, rest = split_indices(n)
    assert train == [int(x) for (x,) in parts[0]] and rest == [int(x) for (x,) in parts[1]]
    assert len(train) == n - held_out and sorted(train + rest) == list(range(n))


def test_official_split_stays_what_it_is():
    """Literal indices, so that no later version of torch or of this code moves the split unseen."""
    train, rest = split_indices(50_000)
    assert (len(train), len(rest)) == (49_000, 1000)
    assert train[:5] == [36044, 49165, 37807, 11341, 6091] and rest[:5] == [18240, 33001, 37028, 25452, 37810]
    assert len(split_indices(73_257)[0]) == 72_257


class FakeSet:
    """Stands for torchvision's CIFAR10 and SVHN: image i is filled with i."""

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


def test_digits():
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
def test_impossible_train_size(size):
    with pytest.raises(Refusal, match="train-size"):
        load_data("digits", train_size=size)


# ---- batches ------------------------------------------------------------------------------------------------


def pictures(n=64):
    g = torch.Generator().manual_seed(1)
    return Images(torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(n) % 7,
                  torch.arange(n))


def test_crops_and_flips_equal_torchvision_image_by_image():
    images = pictures()
    batches = Batches(images, 16, flip=True)
    plan = batches.plan(torch.Generator().manual_seed(0))
    for step in range(batches.steps):
        order, shift, flip = (part[step] for part in plan)
        x, y = batches.batch(order, shift, flip)
        assert x.shape == (16, 3, 32, 32) and x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, images.labels[order])
        for i in range(16):
            picture = images.images[order[i]]
            picture = T.hflip(picture) if flip[i] else picture
            picture = T.crop(T.pad(picture, 4), int(shift[i, 0]), int(shift[i, 1]), 32, 32)
            assert torch.equal(x[i], picture.float().div(255))


def test_every_corner_of_the_padding_by_hand():
    images = pictures(2)
    batches = Batches(images, 2, flip=True)
    for row, column in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4), (3, 7)):
        for flip in (False, True):
            x, _ = batches.batch(torch.tensor([0, 1]), torch.tensor([[row, column]] * 2), torch.tensor([flip] * 2))
            for i in range(2):
                picture = T.hflip(images.images[i]) if flip else images.images[i]
                assert torch.equal(x[i], T.crop(T.pad(picture, 4), row, column, 32, 32).float().div(255))


def test_plan_is_a_function_of_the_generator_and_draws_for_each_image():
    batches = Batches(pictures(64 * 9 + 5), 64, flip=True)
    one, two, other = (batches.plan(torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert not any(torch.equal(a, b) for a, b in zip(one, other))
    assert one.order.shape == (9, 64) and len(set(one.order.flatten().tolist())) == 9 * 64  # without replacement
    assert set(one.shift.flatten().tolist()) == set(range(9))
    assert 0.4 < one.flip.float().mean() < 0.6
    rows, columns = one.shift[..., 0].flatten(), one.shift[..., 1].flatten()
    assert len(set(zip(rows.tolist(), columns.tolist()))) > 70  # of 81: rows and columns are drawn apart
    assert (rows - columns).abs().max() == 8


def test_digits_are_never_mirrored_and_last_partial_batch_is_dropped():
    batches = Batches(pictures(100), 32, flip=False)
    plan = batches.plan(torch.Generator().manual_seed(0))
    assert batches.steps == 3 and plan.order.numel() == 96 and not plan.flip.any()


# ---- a user's own images --------------------------------------------------------------------------------------


def photos(root, parts=("train", "test"), classes=("cat", "dog"), n=15, seed=0):
    """Small pictures of several sizes, modes and formats."""
    modes = [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("RGB", "jpg"), ("CMYK", "jpg"), ("1", "bmp"),
             ("LA", "png")]
    rng = np.random.default_rng(seed)
    for part in parts:
        for c, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                mode, ending = modes[i % len(modes)]
                size = [(32, 32), (48, 20), (7, 90), (1, 1), (64, 64)][i % 5]
                colour = np.full((size[1], size[0], 3), 50 + 65 * c, np.uint8) + rng.integers(0, 40, 3).astype(np.uint8)
                Image.fromarray(colour).convert(mode).save(folder / f"{i:03}.{ending}")
    return root


def test_folder_with_parts(tmp_path):
    root = photos(tmp_path / "own")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "cat" / ".hidden.png").write_text("no image")
    (root / "train" / ".trash").mkdir()
    data = load_data("folder", root)
    assert data.classes == ["cat", "dog"] and data.flip and data.notes == []
    assert (len(data.train.labels), len(data.held_out.labels), len(data.test.labels)) == (27, 3, 30)
    for images in (data.train, data.held_out, data.test):
        assert images.images.shape[1:] == (3, 32, 32) and images.images.dtype == torch.uint8
    files = [p for name in ("cat", "dog") for p in sorted((root / "train" / name).iterdir())
             if p.suffix != ".txt" and not p.name.startswith(".")]
    for image, label, index in zip(*data.train):
        own = Image.open(files[index]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(own))
        assert files[index].parent.name == data.classes[label]
    again = load_data("folder", root)  # from the decoded copy
    assert torch.equal(again.train.images, data.train.images) and torch.equal(again.test.images, data.test.images)


def test_folder_without_parts_is_split_80_20_always_the_same(tmp_path):
    root = photos(tmp_path / "own", parts=(".",), classes=("a", "b", "c"), n=20)
    data = load_data("folder", root)
    assert (len(data.train.labels) + len(data.held_out.labels), len(data.test.labels)) == (48, 12)
    again = load_data("folder", root)
    assert torch.equal(again.test.images, data.test.images) and torch.equal(again.test.labels, data.test.labels)


def test_decoded_copy_is_used_only_if_nothing_changed(tmp_path):
    root = photos(tmp_path / "own")
    before = load_data("folder", root)
    (copy,) = root.glob(".decoded-*.npy")
    Image.new("RGB", (32, 32), (255, 0, 0)).save(root / "train" / "cat" / "000.png")
    after = load_data("folder", root)
    position = (after.train.indices == 0).nonzero()
    if len(position):
        assert after.train.images[position.item(), :, 0, 0].tolist() == [255, 0, 0]
    assert not torch.equal(torch.cat([after.train.images, after.held_out.images]),
                           torch.cat([before.train.images, before.held_out.images]))
    (newer,) = root.glob(".decoded-*.npy")
    assert newer != copy
    newer.write_bytes(newer.read_bytes()[:1000])  # a damaged copy is not read
    assert torch.equal(load_data("folder", root).train.images, after.train.images)


def test_sixteen_bit_pictures_keep_their_content():
    ramp = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="png")
    decoded = decode_image(buffer.getvalue())
    assert np.abs(decoded[0].astype(int) - (ramp >> 8)).max() <= 1


def damage(root):
    """One truncated picture, one text in disguise, one link to nothing."""
    good = (root / "train" / "cat" / "004.jpg").read_bytes()
    (root / "train" / "cat" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (root / "train" / "dog" / "text.png").write_text("no picture")
    (root / "test" / "dog" / "lost.png").symlink_to(root / "nowhere.png")
    return root


def test_unreadable_images_are_named_counted_and_refused(tmp_path):
    root = damage(photos(tmp_path / "own"))
    with pytest.raises(Refusal) as refused:
        load_data("folder", root)
    text = str(refused.value)
    assert "3 of 63" in text and "--skip-bad-images" in text
    assert all(name in text for name in ("train/cat/cut.jpg", "train/dog/text.png", "test/dog/lost.png"))
    data = load_data("folder", root, skip_bad_images=True)
    assert len(data.train.labels) + len(data.held_out.labels) == 30 and len(data.test.labels) == 30
    assert len(data.notes) == 1 and "3" in data.notes[0] and "cut.jpg" in data.notes[0]
    with pytest.raises(Refusal):  # skipping once does not hide them from the next run
        load_data("folder", root)


@pytest.mark.parametrize("make, said", [
    (lambda r: None, "no such folder"),
    (lambda r: r.mkdir(), "no class folders"),
    (lambda r: (r / "only").mkdir(parents=True), "only the class only"),
    (lambda r: [(r / c).mkdir(parents=True) for c in "ab"], "holds no images"),
    (lambda r: photos(r, classes=("cat",)), "only the class cat"),
    (lambda r: photos(r, n=5), "too few"),
    (lambda r: (photos(r), (r / "test" / "fish").mkdir()), "fish"),
    (lambda r: (photos(r, parts=("train",)), (r / "test" / "cat").mkdir(parents=True)), "holds no images"),
])
def test_impossible_folders(make, said, tmp_path):
    root = tmp_path / "own"
    make(root)
    with pytest.raises(Refusal, match=said) as refused:
        load_data("folder", root)
    assert "--data-dir" in str(refused.value) and str(root) in str(refused.value)
