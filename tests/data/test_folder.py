"""A user's own images: split, decoded copy, unreadable files."""

import os

import numpy as np
import pytest
import torch
from photos import damage, photos
from PIL import Image

from utils.data.sets import load_data
from utils.system.refusals import Refusal


def test_folder_with_train_and_test_parts(tmp_path):
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
    again = load_data("folder", root)  # read from the decoded copy
    assert torch.equal(again.train.images, data.train.images) and torch.equal(again.test.images, data.test.images)


def test_folder_without_parts_is_split_80_20_in_the_same_way_each_time(tmp_path):
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
def test_folders_that_are_no_data_set_are_refused(make, said, tmp_path):
    root = tmp_path / "own"
    make(root)
    with pytest.raises(Refusal, match=said) as refused:
        load_data("folder", root)
    assert "--data-dir" in str(refused.value) and str(root) in str(refused.value)


def test_images_are_decoded_into_no_file_behind_a_link(tmp_path, monkeypatch):
    root, other = photos(tmp_path / "own"), tmp_path / "other"
    other.write_bytes(b"mine")
    before = load_data("folder", root)
    (copy,) = root.glob(".decoded-*.npy")
    for large in (False, True):
        copy.unlink(missing_ok=True)
        monkeypatch.setattr("utils.data.stored.IN_MEMORY", 1000 if large else 10**9)
        links = [copy, copy.with_suffix(f".{os.getpid()}")]  # where it is kept, and where it once was written first
        for link in links:
            link.symlink_to(other)
        assert torch.equal(load_data("folder", root).test.images[:], before.test.images)
        assert other.read_bytes() == b"mine" and copy.is_file() and not copy.is_symlink()
    copy.unlink()
    monkeypatch.setattr("utils.data.decoding.secrets.token_hex", lambda n: "guessed")
    copy.with_suffix(".guessed").symlink_to(other)
    with pytest.raises(Refusal, match="cannot be kept there .File exists"):
        load_data("folder", root)
    assert other.read_bytes() == b"mine"
