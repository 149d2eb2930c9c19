"""Images on the disk are the same images."""

import os

import numpy as np
import pytest
import torch
from photos import damage, photos

from utils.data import stored
from utils.data.batches import Batches
from utils.data.images import Images
from utils.data.sets import load_data
from utils.data.stored import StoredImages, join_images, replace_images
from utils.system.refusals import Refusal


def pictures(n=40, size=16):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


@pytest.fixture
def both(tmp_path):
    images = pictures()
    np.save(tmp_path / "images.npy", images.numpy())
    return images, StoredImages(tmp_path / "images.npy")


@pytest.mark.parametrize("rows", [3, slice(2, 30, 5), [7, 7, 0], torch.tensor([[4, 2], [9, 9]]),
                                  torch.arange(40) % 3 == 0, torch.tensor([], dtype=torch.long)])
def test_every_way_of_asking_gives_the_tensor_s_answer(both, rows):
    images, there = both
    assert torch.equal(there[rows], images[rows]) and there.shape == images.shape and len(there) == 40


def test_parts_selections_and_changes_equal_the_tensor_s(both):
    images, there = both
    order = torch.tensor([5, 30, 2, 2, 11])
    assert torch.equal(torch.cat(list(there.split(7))), images) and torch.equal(torch.stack(list(there)), images)
    assert torch.equal(there.pick(order)[:], images[order])
    more = pictures(3) // 2
    joined = join_images(there, more)
    assert torch.equal(joined[:], join_images(images, more)) and torch.equal(joined.pick(order)[:], images[order])
    changed = replace_images(joined, torch.tensor([0, 41]), more[:2])
    assert torch.equal(changed[:], replace_images(join_images(images, more), torch.tensor([0, 41]), more[:2]))
    assert torch.equal(joined[:], join_images(images, more))  # the copy alone changed


def test_a_file_that_lost_its_name_is_still_read_and_a_short_one_is_named(both, tmp_path):
    images, there = both
    os.truncate(tmp_path / "images.npy", 128 + 20 * 768)
    assert torch.equal(there[:20], images[:20])
    with pytest.raises(OSError, match="ends before image 20"):
        there[20]
    np.save(tmp_path / "other.npy", images.numpy())
    kept = StoredImages(tmp_path / "other.npy")
    (tmp_path / "other.npy").unlink()
    assert torch.equal(kept[:], images)


def test_batches_read_ahead_are_those_of_a_tensor(both):
    images, there = both
    of = lambda pixels: Batches(Images(pixels, torch.arange(40) % 3, torch.arange(40)), 8, True)
    tensor, disk = of(images), of(there)
    for epoch in range(2):
        plans = [b.plan(torch.Generator().manual_seed(epoch)) for b in (tensor, disk)]
        assert all(torch.equal(a, b) for a, b in zip(*plans))
        for step in range(2 * epoch, tensor.steps):  # the second epoch is continued in its middle
            (x, y), (x2, y2) = (b.batch(*(part[step] for part in plan)) for b, plan in zip((tensor, disk), plans))
            assert torch.equal(x, x2) and torch.equal(y, y2) and x2.is_contiguous(memory_format=torch.channels_last)
    other = [torch.arange(8), torch.zeros(8, 2, dtype=torch.long), torch.ones(8, dtype=torch.bool)]  # in no plan
    assert torch.equal(tensor.batch(*other)[0], disk.batch(*other)[0])


def test_what_fails_in_the_reading_thread_is_raised_in_the_step(both, tmp_path):
    images, there = both
    disk = Batches(Images(there, torch.arange(40) % 3, torch.arange(40)), 8, True)
    plan = disk.plan(torch.Generator().manual_seed(0))
    os.truncate(tmp_path / "images.npy", 200)
    with pytest.raises(OSError, match="ends before image"):
        for step in range(5):
            disk.batch(*(part[step] for part in plan))


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_folder_too_large_for_memory_holds_the_same_data(tmp_path, monkeypatch, spoilt):
    root = photos(tmp_path / "images", n=20)
    if spoilt:
        damage(root)
    small = load_data("folder", root, size=24, skip_bad_images=spoilt)
    monkeypatch.setattr(stored, "IN_MEMORY", 1000)
    monkeypatch.setattr(stored, "CHUNK", 7 * 24 * 24 * 3)
    for old in root.glob(".decoded-*"):
        old.unlink()
    for _ in range(2):  # decoded, then read from the copy
        large = load_data("folder", root, size=24, skip_bad_images=spoilt)
        assert isinstance(large.train.images, StoredImages) and not isinstance(small.train.images, StoredImages)
        assert large.sha256 == small.sha256 and (large.mean, large.std) == (small.mean, small.std)
        assert torch.equal(large.test.images[:], small.test.images) and large.notes == small.notes
    assert len(list(root.glob(".decoded-*"))) == (not spoilt)


def test_many_images_in_a_folder_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    root = photos(tmp_path / "images")
    monkeypatch.setattr(stored, "IN_MEMORY", 1000)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(Refusal, match="cannot be kept there .No space left on device.; make room"):
        load_data("folder", root)
    assert not list(root.glob(".decoded-*"))
