"""A user's own images: decoding, the copies of it, hostile and unreadable files, and images that stay on the disk."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hostile_files import refusal_of
from photos import damage, photos
from PIL import Image, TiffImagePlugin

from utils.data import files
from utils.data.files import StoredImages, decode_image, join_images, replace_images, resize_parts
from utils.data.sets import load_data
from utils.system.files import write_atomically
from utils.system.refusals import Refusal


def test_folder_with_train_and_test_parts_and_what_is_left_out_of_it(tmp_path):
    root = photos(tmp_path / "own")
    for name in ("cat/notes.txt", "cat/.hidden.png", "loose.png"):
        (root / "train" / name).write_text("no image")
    for name in ("train/.trash", "train/cat/camera2", "more/cat"):
        (root / name).mkdir(parents=True)
    data = load_data("folder", root)
    assert data.classes == ["cat", "dog"] and data.flip
    parts, left_out, *_ = data.notes
    assert "left out are the folders more" in parts
    assert "out are 3 files" in left_out and "(train/loose.png, train/cat/camera2, train/cat/notes.txt)" in left_out
    assert (len(data.train.labels), len(data.held_out.labels), len(data.test.labels)) == (27, 3, 30)
    for images in (data.train, data.held_out, data.test):
        assert images.images.shape[1:] == (3, 32, 32) and images.images.dtype == torch.uint8
    paths = [path for name in ("cat", "dog") for path in sorted((root / "train" / name).glob("[0-9]*"))]
    for image, label, index in zip(*data.train):
        own = Image.open(paths[index]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(own))
        assert paths[index].parent.name == data.classes[label]


@pytest.mark.parametrize("parts, sizes, said", [  # of 20 images a class: to train on, held out, to test
    ((".",), (29, 3, 8), None), (("train",), (29, 3, 8), "a fifth"), (("train", "val"), (36, 4, 40), "those of val/"),
    (("train", "valid"), (36, 4, 40), "test images are those of valid/"), (("train", "Test"), (36, 4, 40), None),
    (("train", "test", "val"), (40, 40, 40), "trigger images are those of val/"),
])
def test_a_folder_is_split_by_its_parts_and_else_in_the_same_way_each_time(parts, sizes, said, tmp_path):
    root = photos(tmp_path / "own", parts=parts, n=20)
    data, again = load_data("folder", root), load_data("folder", root)
    assert data.classes == ["cat", "dog"] and len(data.notes) == (3 if said else 2)  # sizes, one colour each
    assert tuple(len(part.labels) for part in (data.train, data.held_out, data.test)) == sizes
    assert said is None or said in data.notes[0]
    assert again.sha256 == data.sha256 and torch.equal(again.test.images, data.test.images)
    assert again.notes == data.notes  # read from the decoded copy
    some = load_data("folder", root, train_size=20)  # of both classes, whatever the order of the files
    assert 4 <= int(some.train.labels.sum()) <= 16 and torch.isin(some.train.indices, data.train.indices).all()
    assert torch.equal(load_data("folder", root, train_size=12).train.indices, some.train.indices[:12])


def test_that_images_are_made_smaller_is_said(tmp_path):
    root = photos(tmp_path / "own")
    (root / "train/cat/000.png").unlink()
    notes = lambda: "".join(load_data("folder", root).notes)
    assert "resized to 32 x 32 pixels (--image-size N); 001.png has 48 x 20" in notes()
    for path in root.rglob("[0-9]*.*"):
        Image.open(path).resize((32, 32)).save(path)
    assert "resized" not in notes()
    for path in (root / "train/dog").glob("[0-9]*.*"):  # not the first class
        Image.open(path).resize((600, 100)).save(path)
    assert "has 600 x 100" in notes()


def test_images_of_nearly_one_colour_are_warned_of_where_they_are_many(tmp_path):
    shades = lambda levels: Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) % levels, (32, 1)))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(19):
            shades(18).save(tmp_path / name / f"{i}.png")
    shades(17).save(tmp_path / "cat" / "dim.png")  # spans 16 levels
    shades(1).save(tmp_path / "cat" / "black.png")
    assert load_data("folder", tmp_path).notes == []  # 2 of 40 are borne
    shades(1).save(tmp_path / "dog" / "black.png")
    (note,) = load_data("folder", tmp_path).notes
    assert "warning: 7 % of the images decode to nearly one colour" in note


def test_names_that_are_no_unicode_become_printable_class_names(tmp_path):
    root = photos(tmp_path / "own", parts=(".",), n=20)
    os.rename(root / "cat", os.fsencode(root) + b"/caf\xe9")
    assert load_data("folder", root).classes == ["caf\\udce9", "dog"]


def test_class_folders_that_no_answer_could_tell_apart_are_refused(tmp_path):
    """Spaces around a name do not count, nor which of the two forms of Unicode it has."""
    root = photos(tmp_path / "own", classes=("caf\u00e9", "dog"))
    os.rename(root / "test" / "caf\u00e9", root / "test" / "cafe\u0301 ")
    data = load_data("folder", root)
    assert data.classes == ["caf\u00e9", "dog"]
    assert data.test.labels.bincount().tolist() == [15, 15]
    for name, words in (("cafe\u0301", r"'cafe\u0301' and 'caf\xe9'"), ("dog ", "'dog' and 'dog '"),
                        (" ", "the name of the folder ' ' in")):
        (root / "train" / name).mkdir()
        with pytest.raises(Refusal) as caught:
            load_data("folder", root)
        assert words in str(caught.value) and "rename" in str(caught.value) and str(caught.value).isprintable()
        (root / "train" / name).rmdir()


def test_decoded_copy_is_used_only_if_nothing_changed(tmp_path):
    root = photos(tmp_path / "own", parts=("train", "test", "val"))
    before = load_data("folder", root)
    (copy,) = root.glob(".decoded-*.npy")
    assert before.train.images.is_contiguous()  # freshly decoded, too
    young, killed = (root / f".decoded-{'0' * 32}{name}" for name in (".aaaaaaaa", "-64.bbbbbbbb"))
    for path in (young, killed):  # partial copies of other processes
        path.touch()
    os.utime(killed, (0, 0))
    picture = root / "train" / "cat" / "006.bmp"
    size = picture.stat().st_size
    Image.new("1", (48, 20), 1).save(picture)
    assert picture.stat().st_size == size
    after = load_data("folder", root)
    is_changed = after.train.indices == 6
    assert (after.train.images[is_changed] == 255).all() and not (before.train.images[is_changed] == 255).all()
    assert torch.equal(after.train.images[~is_changed], before.train.images[~is_changed])
    (newer,) = root.glob(".decoded-*.npy")
    assert newer != copy and young.exists() and not killed.exists()
    assert load_data("folder", root, image_size=48).size == 48
    whole = newer.read_bytes()
    for damaged in (whole.replace(b"}", b" ", 1), whole.replace(b"(90", b"(-9", 1),  # numpy reads no such header
                    whole[:-8]):
        newer.write_bytes(damaged)
        assert damaged != whole and torch.equal(load_data("folder", root).train.images, after.train.images)
    newer.unlink()
    os.mkfifo(newer)  # nobody writes into it
    assert torch.equal(load_data("folder", root).train.images, after.train.images)
    newer.write_bytes(newer.read_bytes()[:1000])  # a damaged copy is not read
    assert torch.equal(load_data("folder", root).train.images, after.train.images)
    assert len(list(root.glob(".decoded-*.npy"))) == 2  # one of each size


def test_unreadable_images_are_named_counted_and_refused(tmp_path):
    root = damage(photos(tmp_path / "own"))
    (root / "train/cat/lfs.png").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(Refusal) as refused:
        load_data("folder", root)
    text = str(refused.value)
    assert "4 of 64" in text and "--skip-bad-images" in text
    for why in ("train/cat/cut.jpg (OSError: ", "train/dog/text.png (no whole PNG, JPEG or other image that is read)",
                "test/dog/lost.png (FileNotFoundError: ", "train/cat/lfs.png (a git-lfs pointer: run git lfs pull"):
        assert why in text
    data = load_data("folder", root, skip_bad_images=True)
    assert len(data.train.labels) + len(data.held_out.labels) == 30 and len(data.test.labels) == 30
    assert "skipped 4 unreadable" in data.notes[1] and "cut.jpg" in data.notes[1]
    with pytest.raises(Refusal):  # skipping once does not hide them from the next run
        load_data("folder", root)


@pytest.mark.parametrize("make, said", [
    (lambda r: None, "no such folder"), (lambda r: r.mkdir(), "no class folders"),
    (lambda r: (r / "only").mkdir(parents=True), "only the class only"),
    (lambda r: [(r / c).mkdir(parents=True) for c in "ab"], "a holds no images; parts are train/, test/, val/"),
    (lambda r: photos(r, n=5), "too few"), (lambda r: (photos(r), (r / "test" / "fish").mkdir()), "fish"),
    (lambda r: (photos(r, parts=("train",)), (r / "test" / "cat").mkdir(parents=True)), "test holds no images"),
])
def test_folders_that_are_no_data_set_are_refused(make, said, tmp_path):
    root = tmp_path / "own"
    make(root)
    with pytest.raises(Refusal, match=said) as refused:
        load_data("folder", root)
    assert "--data-dir" in str(refused.value) and str(root) in str(refused.value)


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_folder_too_large_for_memory_holds_the_same_data(tmp_path, monkeypatch, spoilt):
    root = photos(tmp_path / "images", n=20)
    if spoilt:
        damage(root)
    small = load_data("folder", root, image_size=24, skip_bad_images=spoilt)
    monkeypatch.setattr(files, "IN_MEMORY", 1000)
    monkeypatch.setattr(files, "CHUNK", 7 * 24 * 24 * 3)
    for old in root.glob(".decoded-*"):
        old.unlink()
    for _ in range(2):  # decoded, then read from the copy
        large = load_data("folder", root, image_size=24, skip_bad_images=spoilt)
        assert isinstance(large.train.images, StoredImages) and not isinstance(small.train.images, StoredImages)
        assert large.sha256 == small.sha256 and (large.mean, large.std) == (small.mean, small.std)
        assert torch.equal(large.test.images[:], small.test.images) and large.notes == small.notes
    assert len(list(root.glob(".decoded-*"))) == (not spoilt)


def test_where_a_copy_cannot_be_kept_only_many_images_are_refused(tmp_path, monkeypatch):
    root = photos(tmp_path / "images")
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0",
                        lambda *_: open("/dev/full", "wb", buffering=0).write(b"full"))
    load_data("folder", root)
    monkeypatch.setattr(files, "IN_MEMORY", 1000)
    with pytest.raises(Refusal, match="cannot be kept there .No space left on device.; make room"):
        load_data("folder", root)
    assert not list(root.glob(".decoded-*"))


@pytest.mark.parametrize("large", [False, True])
def test_images_are_decoded_into_no_file_behind_a_link(large, tmp_path, monkeypatch):
    root, other = photos(tmp_path / "own"), tmp_path / "other"
    other.write_bytes(b"mine")
    before = load_data("folder", root)
    (copy,) = root.glob(".decoded-*.npy")
    copy.unlink()
    monkeypatch.setattr(files, "IN_MEMORY", 1000 if large else 10**9)
    copy.symlink_to(other)
    assert torch.equal(load_data("folder", root).test.images[:], before.test.images)
    assert other.read_bytes() == b"mine" and copy.is_file() and not copy.is_symlink()


def decoded(picture, form="png", **more):
    """What `decode_image` makes of a picture, a Pillow image or an array: (3, 32, 32)."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer := io.BytesIO(), format=form, **more)
    return decode_image(buffer.getvalue())


def test_sixteen_bits_and_numbers_are_scaled_to_eight():
    ramp = np.arange(32 * 32).reshape(32, 32) % 256
    for form in ("png", "tiff", "ppm"):
        assert (decoded((ramp * 257).astype(np.uint16), form)[0] == ramp).all()
    inverted = TiffImagePlugin.ImageFileDirectory_v2()
    inverted[262] = 0  # white is zero
    for levels in ((ramp * 257).astype(np.uint16), (ramp / 255).astype(np.float32)):
        assert (decoded(levels, "tiff", tiffinfo=inverted)[0] == 255 - ramp).all(), levels.dtype
    for numbers in (ramp / 255, ramp * 1.0):  # in [0, 1] and in [0, 255]
        assert (decoded(numbers.astype(np.float32), "tiff") == ramp).all()
    shifted = decoded((ramp * 10 - 500).astype(np.float32), "tiff")  # in no usual range: from black to white
    assert (shifted == ramp).all()
    seen = decoded((ramp * 257).astype(np.uint16), transparency=7 * 257)[0]
    assert (seen == np.where(ramp == 7, 255, ramp)).all()  # what is transparent is white
    with pytest.raises(Refusal, match="not all finite"):
        decoded(np.where(ramp == 7, np.nan, ramp).astype(np.float32), "tiff")


def test_pictures_are_decoded_as_a_viewer_shows_them():
    shape = np.zeros((32, 32, 4), np.uint8)
    shape[8:24, 8:24, 3] = 255  # black, and only where it is opaque
    expected = np.full((3, 32, 32), 255)
    expected[:, 8:24, 8:24] = 0
    assert (decoded(shape) == expected).all() and (decoded(Image.fromarray(shape).convert("LA")) == expected).all()
    palette = Image.fromarray((shape[..., 3] > 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    assert (decoded(palette, transparency=0) == expected).all()
    shape[8:24, 8:24, 3] = 51  # a fifth of black on white
    assert (decoded(shape)[:, 8:24, 8:24] == 204).all()
    turned, exif = Image.fromarray(np.repeat(np.arange(32, dtype=np.uint8)[:, None] * 8, 32, 1)), Image.Exif()
    exif[0x0112] = 3  # upside down
    assert (decoded(turned, exif=exif)[0, 0] == 248).all()


def png(width, height, body) -> bytes:
    chunk = lambda kind, content: (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_picture_bombs_are_refused(tmp_path, capfd):
    for size in ((100_000, 100_000), (2**31 - 1, 1), (20_000, 5_000), (8000, 7000)):
        with pytest.raises(Refusal, match="more than 50 megapixels"):
            decode_image(png(*size, zlib.compress(b"\0" * 10_000)))
    packed = zlib.compress(b"\0" * 10**7)
    (tmp_path / "picture.png").write_bytes(png(32, 32, packed))  # more pixels than its header says
    refusal_of(tmp_path / "picture.png")
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(touch boom) run\nshowpage\n%%EOF\n"
    (tmp_path / "picture.png").write_bytes(text)  # Pillow would pass it to Ghostscript
    assert refusal_of(tmp_path / "picture.png")
    assert capfd.readouterr().err == ""


def test_images_are_resized_once_and_taken_from_the_file_later(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g) for n in (9, 4)]
    small = resize_parts(parts, 24, tmp_path / "small.npy", "")
    assert resize_parts(parts, 32, tmp_path / "none.npy", "") is parts
    monkeypatch.setattr(files, "IN_MEMORY", 1000)
    monkeypatch.setattr(files, "CHUNK", 2 * 4 * 3 * 24 * 24)
    for again in (False, True):
        if again:
            monkeypatch.setattr(files, "_resized", lambda *parts: iter(()))
        for images, expected in zip(resize_parts(parts, 24, tmp_path / ".resized-24.npy", ""), small):
            assert torch.equal(images[:], expected) and isinstance(images, StoredImages)
    assert {file.name for file in tmp_path.iterdir()} == {".resized-24.npy", "small.npy"}


def test_stored_images_answer_as_a_tensor_does(tmp_path):
    g = torch.Generator().manual_seed(2)
    images, more = (torch.randint(0, 256, (n, 3, 16, 16), generator=g, dtype=torch.uint8) for n in (40, 3))
    np.save(tmp_path / "images.npy", images.numpy())
    there, order = StoredImages(tmp_path / "images.npy"), torch.tensor([5, 30, 2, 2, 11])
    for rows in (3, slice(2, 30, 5), [7, 7, 0], torch.tensor([[4, 2], [9, 9]]), torch.arange(40) % 3 == 0,
                 torch.tensor([], dtype=torch.long)):
        assert torch.equal(there[rows], images[rows]), rows
    assert there.shape == images.shape and len(there) == 40
    assert torch.equal(torch.cat(list(there.split(7))), images) and torch.equal(there.pick(order)[:], images[order])
    joined = join_images(there, more)
    assert torch.equal(joined[:], join_images(images, more)) and torch.equal(joined.pick(order)[:], images[order])
    changed = images.clone()
    changed[[0, 39]] = more[:2]
    for unchanged in (images, there):
        assert torch.equal(replace_images(unchanged, torch.tensor([0, 39]), more[:2])[:], changed)
        assert not torch.equal(unchanged[:], changed)  # the copy alone changed
    again = replace_images(joined, torch.tensor([0, 41]), more[:2])
    assert torch.equal(again[:], torch.cat([more[:1], images[1:], more[:1], more[1:2], more[2:]]))
    os.truncate(tmp_path / "images.npy", 128 + 20 * 768)
    with pytest.raises(OSError, match="ends before image 20"):
        there[20]


def test_pictures_are_written_in_the_order_of_their_names_and_read_back(tmp_path, monkeypatch):
    """So the files' times tell no order of the owner's."""
    images, written, spoilt = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 16, 16), [], []

    def write(path, content):
        written.append(path.name)
        write_atomically(path, files_of[0] if spoilt else content)

    monkeypatch.setattr(files, "write_atomically", write)
    files.write_pictures(images, ["b.png", "c.png", "a.png"], tmp_path)
    assert written == ["a.png", "b.png", "c.png"]
    files_of, spoilt = [(tmp_path / "b.png").read_bytes()], [True]
    with pytest.raises(Refusal, match="a.png does not read back as it was written"):
        files.write_pictures(images, ["b.png", "c.png", "a.png"], tmp_path)


def test_files_of_images_are_bounded(tmp_path, monkeypatch):
    root = photos(tmp_path / "own")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(root / "train/cat/big.bmp")
    monkeypatch.setattr(files, "FILE_LIMIT", 12_000)
    with pytest.raises(Refusal, match="1 of 61 images cannot be read: train/cat/big.bmp .*larger than 12000 bytes"):
        load_data("folder", root)
