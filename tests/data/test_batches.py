"""Crops, flips and the order of batches, against torchvision's own."""

import torch
from torchvision.transforms import functional as T

from utils.data.batches import Batches
from utils.data.images import Images


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


def test_without_flip_nothing_is_mirrored_and_the_last_partial_batch_is_dropped():
    batches = Batches(pictures(100), 32, flip=False)
    plan = batches.plan(torch.Generator().manual_seed(0))
    assert batches.steps == 3 and plan.order.numel() == 96 and not plan.flip.any()
