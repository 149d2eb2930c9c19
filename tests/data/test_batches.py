"""Crops, flips and the order of batches, against torchvision's own, and batches of stored images."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ROOT
from torchvision.transforms import functional as T

from utils.data.batches import Batches
from utils.data.files import StoredImages
from utils.data.sets import Images


def pictures(n=64, size=32):
    g = torch.Generator().manual_seed(1)
    return Images(torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8), torch.arange(n) % 7,
                  torch.arange(n))


@pytest.mark.parametrize("size", [32, 16, 48])
def test_crops_and_flips_equal_torchvision_image_by_image(size):
    images, pad = pictures(size=size), size // 8
    batches = Batches(images, 16, flip=True)
    plan = batches.plan(torch.Generator().manual_seed(0))
    assert batches.steps == 4 and plan.shift.min() == 0 and plan.shift.max() == 2 * pad
    for step in range(batches.steps):
        order, shift, flip = (part[step] for part in plan)
        x, y = batches.batch(order, shift, flip)
        assert x.shape == (16, 3, size, size) and x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, images.labels[order])
        for i in range(16):
            picture = images.images[order[i]]
            picture = T.hflip(picture) if flip[i] else picture
            picture = T.crop(T.pad(picture, pad), int(shift[i, 0]), int(shift[i, 1]), size, size)
            assert torch.equal(x[i], picture.float().div(255))


@pytest.mark.parametrize("flip, crop, most, number", [
    (True, True, 1 << 30, 6), (False, False, 1 << 30, 1), (True, True, 1, 2)])
def test_views_are_the_images_and_then_crops_and_mirrored_ones_of_them(flip, crop, most, number, monkeypatch):
    """Of two images of 16 pixels: each view is found among all that steps can see, and the first ones are unchanged."""
    monkeypatch.setattr("utils.data.batches.MOST_OF_VIEWS", most)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = Batches(Images(images, torch.arange(2), None), 1, flip, crop=crop)
    x, rows = batches.views(images)
    assert rows.tolist() == [0, 1] * number and torch.equal(x[:2], images.float() / 255)
    for view, i in zip(x, rows):
        padded, pads = [T.pad(image, 2 if crop else 0) for image in (images[i], images[i].flip(-1))], 5 if crop else 1
        seen = [p[:, r : r + 16, c : c + 16] for p in padded[: 1 + flip] for r in range(pads) for c in range(pads)]
        assert any(torch.equal(view, one.float() / 255) for one in seen)
    assert len({view.numpy().tobytes() for view in x}) > 2 or not crop


def test_plan_depends_on_the_generator_alone_and_draws_for_each_image():
    batches = Batches(pictures(64 * 9 + 5), 64, flip=True)
    one, two, other = (batches.plan(torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert not any(torch.equal(a, b) for a, b in zip(one, other))
    assert one.order.shape == (9, 64) and len(set(one.order.flatten().tolist())) == 9 * 64  # without replacement
    assert set(one.shift.flatten().tolist()) == set(range(9))
    assert 0.4 < one.flip.float().mean() < 0.6
    rows, columns = one.shift[..., 0].flatten(), one.shift[..., 1].flatten()
    assert len(set(zip(rows.tolist(), columns.tolist()))) > 70  # of 81: rows and columns are drawn independently
    assert (rows - columns).abs().max() == 8
    assert not Batches(pictures(), 64, flip=False).plan(torch.Generator()).flip.any()


@pytest.fixture
def both(tmp_path):
    """Batches of the same 40 images of 16 pixels, of a tensor and of a file, images.npy."""
    images = pictures(40, 16)
    np.save(tmp_path / "images.npy", images.images.numpy())
    stored = images._replace(images=StoredImages(tmp_path / "images.npy"))
    return Batches(images, 8, True), Batches(stored, 8, True)


def test_batches_read_ahead_are_those_of_a_tensor(both):
    tensor, disk = both
    for epoch in range(2):
        plans = [b.plan(torch.Generator().manual_seed(epoch)) for b in both]
        assert all(torch.equal(a, b) for a, b in zip(*plans))
        for step in range(2 * epoch, tensor.steps):  # the second epoch is continued in its middle
            (x, y), (x2, y2) = (b.batch(*(part[step] for part in plan)) for b, plan in zip(both, plans))
            assert torch.equal(x, x2) and torch.equal(y, y2) and x2.is_contiguous(memory_format=torch.channels_last)
            assert len(disk.ahead) == min(3, tensor.steps - 1 - step)
    for order in (torch.arange(8), plans[0].order[1]):  # in no plan, and with other crops than in the plan
        other = order, torch.zeros(8, 2, dtype=torch.long), torch.ones(8, dtype=torch.bool)
        assert torch.equal(tensor.batch(*other)[0], disk.batch(*other)[0])


def test_a_command_that_ends_while_images_are_read_ahead_keeps_its_exit_status(both, tmp_path):
    """torch aborts (134) where a thread still runs when the interpreter ends, as one did after an interruption."""
    code = f"""
import sys, torch
from utils.data import batches, files, sets
images = sets.Images(files.StoredImages({str(tmp_path / "images.npy")!r}), torch.zeros(40).long(), torch.arange(40))
batches = batches.Batches(images, 2, True)
batches.batch(*(part[0] for part in batches.plan(torch.Generator().manual_seed(0))))
sys.exit(143)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (143, "")
