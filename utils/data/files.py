"""Image files into pixels, and images that stay on the disk.

From top to bottom: a user's folder (`-dt folder`), decoding, resizing, and `StoredImages`, which stand where a tensor
of more than `IN_MEMORY` bytes would. Files are untrusted: a size limit, a fixed list of formats, and copies are
written under names at which nobody can have put a link.
"""

import contextlib
import hashlib
import io
import math
import os
import secrets
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.system.files import read_bounded, write_atomically
from utils.system.refusals import Refusal

SIZE = 32  # height and width of images unless --image-size says otherwise, pixels
FILE_LIMIT = 256 << 20  # bytes of one image file
IN_MEMORY = 3 << 26  # bytes of a data set that is held as tensors, up to four copies; 60,000 images of 32 x 32 fit
CHUNK = 1 << 26  # bytes that a pass over all images reads at once
ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".ppm", ".pgm", ".pnm", ".pfm",
           ".tif", ".tiff")
ABANDONED = 24 * 3600  # seconds after the last byte of a partial copy, from which on nobody is taken to write it
MEGAPIXELS = 50  # of one image, at most
TEST_PARTS = ("test", "val", "valid", "validation")  # beside train/: the test images, then the held-out images
FLAT, FLAT_SHARE = 16, 0.05  # levels of 255: an image that spans no more is of nearly one colour; share that is told
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "PPM", "TIFF")  # which Pillow tries, whatever a file's name


def load_folder(root: Path, skip_bad_images: bool, size: int):
    """The images below `root`: [(images, labels) of training, of test, of held-out images if any], classes, notes.

    `root` holds `train/<class>/*` and `test/<class>/*` (or val, see `TEST_PARTS`), or `<class>/*` or `train/<class>/*`
    alone; then a fifth, drawn with seed 0, becomes the test set. Held-out images are those of val/ beside train/ and
    test/. The notes name what is left out, and say where images decode to nearly one colour. Images are uint8
    (N, 3, size, size), `StoredImages` where they are many. Raises Refusal for missing classes and unreadable images.
    """
    if not root.is_dir():
        raise Refusal(f"--data-dir {root}: no such folder; it should hold train/<class>/ and test/<class>/ images")
    parts, notes = _parts(root)
    folders = _subfolders(parts[0])
    if len(folders) < 2:
        found = f"only the class {folders[0]}" if folders else "no class folders"
        raise Refusal(f"--data-dir {root}: {found} in {parts[0]}; a classifier needs two class folders or more")
    for part in parts[1:]:
        if unknown := sorted(set(_subfolders(part)) - set(folders)):
            raise Refusal(f"--data-dir {root}: {part.name} has classes that {parts[0].name} has not: "
                          f"{', '.join(unknown[:5])}")
    # a class whose folder's name is no Unicode is called what the terminal shows of it
    classes = [name.encode(errors="backslashreplace").decode() for name in folders]

    files, labels, place = [], [], []
    for i, part in enumerate(parts):
        for label, name in enumerate(folders):
            names = image_files(part / name)
            if not names and part is parts[0]:
                raise Refusal(f"--data-dir {root}: the class folder {part / name} holds no images{_left_out([part])}")
            files += names
            labels += [label] * len(names)
            place += [i] * len(names)
        if i not in place:
            raise Refusal(f"--data-dir {root}: {part} holds no images")
    if left_out := _left_out(parts):
        notes.append(f"--data-dir {root}{left_out}")
    images, good, skipped = _decode_files(root, files, skip_bad_images, size)
    labels, place = torch.tensor(labels)[good], torch.tensor(place)[good]
    if len(parts) > 1:
        chosen = [(place == i).nonzero().flatten() for i in range(len(parts))]
    else:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        chosen = order.split([len(labels) - len(labels) // 5, len(labels) // 5])
    if len(chosen[0]) < 20:
        raise Refusal(f"--data-dir {root}: {len(chosen[0])} training images are too few; 20 are the least")
    if not all(map(len, chosen)):
        raise Refusal(f"--data-dir {root}: no readable {'test' if not len(chosen[1]) else 'held-out'} images are left")
    notes += skipped + _flat_images(images, [path for path, is_good in zip(files, good) if is_good])
    sets = [(pick_images(images, positions), labels[positions]) for positions in chosen]
    if without := [name for label, name in enumerate(classes) if not (sets[1][1] == label).any()]:
        notes.append(f"no test image is of the class {', '.join(without[:5])}{', ...' if without[5:] else ''}")
    return sets, classes, notes


def _parts(root: Path) -> tuple[list[Path], list[str]]:
    """Folders of the classes, for training, test and held-out images if there are, and notes on what is which."""
    known = {name.lower(): root / name for name in _subfolders(root)}
    tests = [known[name] for name in TEST_PARTS if name in known]
    others = set(known) - {"train", *TEST_PARTS}
    if "train" not in known or not (tests or _subfolders(known["train"]) and not others):
        return [root], []
    tests, notes = tests[: 2 if "test" in known else 1], []
    if not tests:
        notes.append(f"{root} has train/ and neither test/ nor val/: the test images are a fifth of train/, drawn with "
                     "seed 0")
    elif tests[0].name.lower() != "test":
        notes.append(f"{root} has no test/: the test images are those of {tests[0].name}/")
    elif len(tests) == 2:
        notes.append(f"validation images and triggers are taken from {tests[1]}, not from train/")
    if left_out := sorted({*known.values()} - {known["train"], *tests}):
        left_out = [path.name for path in left_out]
        notes.append(f"{root}: left out are the folders {', '.join(left_out[:5])}{', ...' if left_out[5:] else ''}; "
                     f"classes are read from {', '.join(path.name for path in (known['train'], *tests))} alone")
    return [known["train"], *tests], notes


def _left_out(parts: list[Path]) -> str:
    """": left out are ..." with the files and folders below `parts` that are not read as images, "" without any."""
    files, folders = [], []
    for part in parts:
        for name in _subfolders(part):
            for entry in sorted(os.scandir(part / name), key=lambda entry: entry.name):
                if not entry.name.startswith(".") and not entry.name.lower().endswith(ENDINGS):
                    (folders if entry.is_dir() else files).append(os.path.relpath(entry.path, part.parent))
        files += [os.path.relpath(path, part.parent) for path in image_files(part)]
    told = [f"{kind}: {len(found)} ({', '.join(found[:3])}{', ...' if found[3:] else ''})" for found, kind in (
        (files, "files beside the classes or with other endings than images"),
        (folders, "folders within classes, whose images belong into the class's own")) if found]
    return f": left out are {'; and '.join(told)}" if told else ""


def _flat_images(images, files: list[str]) -> list[str]:
    """A sentence where more than `FLAT_SHARE` of the images (N, 3, S, S) are nearly of one colour."""
    spans = []
    for part in images.split(chunk_length(images)):
        low, high = part.flatten(2).aminmax(dim=2)
        spans.append((high - low).amax(1))  # (n,) levels between the darkest and the brightest pixel of a channel
    flat = (torch.cat(spans) <= FLAT).nonzero().flatten().tolist()
    if len(flat) <= FLAT_SHARE * len(images):
        return []
    return [f"warning: {len(flat)} of {len(images)} images decode to nearly one colour, black for example, so there is "
            f"little to learn from them ({files[flat[0]]}, ...): look at what a viewer shows, and save shapes that are "
            "in an alpha channel alone, or few of 16 bits, as ordinary 8-bit images"]


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[str]:
    """Paths of the image files in `folder` itself, in the order of their names; none without a folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.path for entry in os.scandir(folder)
                  if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith("."))


def read_images(files: list[str], size: int, flag: str):
    """uint8 (N, 3, size, size) of image files; Refusal, which `flag` begins, for one that cannot be read."""
    bad = {}
    images = [torch.from_numpy(pixels.copy()) for pixels in _decoded(files, size, bad)]
    for path, why in bad.items():
        raise Refusal(f"{flag}: {path} cannot be read ({why}); mend or remove it")
    return torch.stack(images)


def _decode_files(root: Path, files: list[str], skip_bad_images: bool, size: int):
    """(uint8 images (N, 3, size, size) of the readable files, a mask (all files,) of which are readable, notes).

    They are kept in `root/.decoded-<hash of all names and bytes>.npy`, which is used only if nothing changed; many are
    decoded into that file and stay there. Raises Refusal for unreadable files without `skip_bad_images`, and where many
    images cannot be kept.
    """
    shape, ending = (len(files), 3, size, size), "" if size == SIZE else f"-{size}"
    cache = root / f".decoded-{_digest(root, files, size)}{ending}.npy"
    is_large, bad = math.prod(shape) > IN_MEMORY, {}
    if (stored := _stored_copy(cache, shape)) is not None:
        return stored if is_large else stored[:], torch.ones(len(files), dtype=torch.bool), []
    with _temporary(cache) as partial:
        if is_large:
            images = _store(partial, shape, _decoded(files, size, bad))
        else:
            images = np.empty(shape, np.uint8)
            for i, pixels in enumerate(_decoded(files, size, bad)):
                images[i] = pixels
        if bad and not skip_bad_images:
            some = ", ".join(f"{os.path.relpath(path, root)} ({why})" for path, why in list(bad.items())[:5])
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise Refusal(f"--data-dir {root}: {len(bad)} of {len(files)} images cannot be read: {some}{more}; "
                          "mend or remove them, or pass --skip-bad-images")
        with contextlib.suppress(OSError):  # then the next run decodes again, and so it does after unreadable files
            if not bad:
                for old in root.glob(f".decoded-{'[0-9a-f]' * 32}{ending}.*"):
                    if old.suffix == ".npy" or old.is_symlink() or time.time() - old.stat().st_mtime > ABANDONED:
                        old.unlink()  # a younger partial file is another process's
                if not is_large:
                    _write_npy(partial, shape, [images])
                os.replace(partial, cache)
    good = torch.tensor([path not in bad for path in files])
    notes = [f"skipped {len(bad)} unreadable images: {', '.join(list(bad)[:20])}"] if bad else []
    return images.pick(good.nonzero().flatten()) if is_large else torch.from_numpy(images)[good], good, notes


def _digest(root: Path, files: list[str], size: int) -> str:
    digest = hashlib.sha256(f"{size}x{size} RGB bilinear 3".encode())
    for path in tqdm(files, desc="reading images", unit="image", disable=None, leave=False):
        try:
            content = read_bounded(path, FILE_LIMIT)
        except (OSError, Refusal):
            content = b""  # the decoding names it as unreadable
        digest.update(f"{os.path.relpath(path, root)}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:32]


def _decoded(files: list[str], size: int, bad: dict):
    """The pixels of each file; black for one that cannot be read, which enters `bad` with the kind of its error."""
    for path in tqdm(files, desc="decoding images", unit="image", disable=None, leave=False):
        try:
            pixels = decode_image(read_bounded(path, FILE_LIMIT), size)
        except Exception as error:  # a damaged image may raise nearly anything
            bad[path] = str(error) if isinstance(error, Refusal) else type(error).__name__
            pixels = np.zeros((3, size, size), np.uint8)
        yield pixels


def decode_image(content: bytes, size: int = SIZE) -> np.ndarray:
    """One encoded image -> uint8 (3, size, size) RGB as a viewer shows it, resized bilinearly.

    It is turned as its EXIF says, and what is transparent is white. 16 bits are scaled to 8; see `_scaled` for numbers
    that have no range of their own. Raises Refusal for too many pixels and for numbers that are not finite, and
    whatever Pillow raises. Only `FORMATS` are tried, because Pillow would hand an EPS file to Ghostscript, whatever the
    file's name.
    """
    from PIL import Image, ImageOps

    too_large = f"it has more than {MEGAPIXELS} megapixels, the most that is read of an image; make it smaller"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise Refusal(too_large) from error
        with picture:
            if picture.width * picture.height > MEGAPIXELS * 1_000_000:
                raise Refusal(f"{too_large} ({picture.width} x {picture.height} pixels)")
            is_16_bit = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
            invisible = picture.info.get("transparency") if picture.mode[0] in "IF" else None
            with contextlib.suppress(Exception):  # an orientation that cannot be read is none
                picture = ImageOps.exif_transpose(picture)
            if picture.mode[0] in "IF":
                values = np.asarray(picture.convert("F"), np.float32)
                levels = values / 257 if is_16_bit else _scaled(values)  # 65535 / 255
                if isinstance(invisible, int):
                    levels = np.where(values == invisible, 255, levels)
                picture = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
            elif "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa"):
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("RGB")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(picture).transpose(2, 0, 1)


def _scaled(values) -> np.ndarray:
    """Levels 0..255 of numbers without a stated range: those in [0, 1] times 255, in [0, 255] as they are, others such
    that the least is black and the greatest is white."""
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):  # a NaN shows in both
        raise Refusal("its numbers are not all finite")
    if low >= 0 and high <= 1:
        return values * 255
    return values if low >= 0 and high <= 255 else (values - low) / max(high - low, 1e-30) * 255


def resize_parts(parts: list, size: int, cache: Path) -> list:
    """[(images, labels), ...] with each part's uint8 images (N, 3, H, W) resized, bilinearly and with antialiasing.

    Where all of them would take more than `IN_MEMORY` bytes they are written to `cache`, a .npy file, one part after
    the other, and stay there; a later call takes them from it. Raises Refusal where there is no room.
    """
    if all(images.shape[-2:] == (size, size) for images, _ in parts):
        return parts
    lengths = [len(labels) for _, labels in parts]
    shape = (sum(lengths), 3, size, size)
    if math.prod(shape) <= IN_MEMORY:
        everything = torch.from_numpy(np.concatenate(list(_resized(parts, size))))
    elif (everything := _stored_copy(cache, shape)) is None:
        with _temporary(cache) as partial:
            everything = _store(partial, shape, _resized(parts, size))
            os.replace(partial, cache)
    rows = torch.arange(shape[0]).split(lengths)
    return [(pick_images(everything, part), labels) for part, (_, labels) in zip(rows, parts)]


def _resized(parts: list, size: int):
    """uint8 arrays (n, 3, size, size), which together are the images of all parts."""
    at_once = max(1, CHUNK // (4 * 3 * size**2))  # of a float32 batch; the result does not depend on it
    total = sum(len(images) for images, _ in parts)
    with tqdm(total=total, desc=f"resizing to {size} pixels", unit="image", disable=None, leave=False) as bar:
        for chunk in (chunk for images, _ in parts for chunk in images.split(at_once)):
            x = torch.nn.functional.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True)
            yield x.round().clamp(0, 255).to(torch.uint8).numpy()
            bar.update(len(chunk))


@contextlib.contextmanager
def _temporary(path: Path):
    """Context of a name beside `path` that nobody can know before; a file that has it still in the end is removed."""
    partial = path.with_suffix(f".{secrets.token_hex(4)}")
    try:
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_npy(path: Path, shape: tuple, chunks) -> None:
    """uint8 arrays that together have this shape, into a new .npy file."""
    with open(path, "xb") as file:  # "x" follows no link
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for chunk in chunks:
            file.write(chunk.tobytes())


def _store(path: Path, shape: tuple, chunks) -> "StoredImages":
    """The arrays as images of a new file, which stays open whatever becomes of its name."""
    try:
        _write_npy(path, shape, chunks)
        return StoredImages(path)
    except OSError as error:
        raise Refusal(f"--data-dir {path.parent}: {math.prod(shape) >> 20} MiB of images of {shape[-1]} pixels cannot "
                      f"be kept there ({error.strerror}); make room, pass a smaller --image-size, or name another "
                      "folder where you may write") from error


def _stored_copy(path: Path, shape: tuple) -> "StoredImages | None":
    """The images in a .npy file of this shape, None where there is no such file or it is damaged."""
    try:
        images = StoredImages(path)
    except (OSError, ValueError, EOFError):
        return None
    is_whole = os.fstat(images.file.fileno()).st_size == images.begin + math.prod(shape)
    return images if is_whole and images.shape == shape else None


class StoredImages:
    """uint8 images (N, 3, S, S): rows of a .npy file, and of a tensor `more` which is numbered after them.

    Rows are read when they are asked for and are not mapped, so that what was read before does not count as memory of
    the process; the system's own cache keeps what is read often. The file stays open, so it may lose its name.
    Offers what this project asks of a tensor of images: `shape`, `len`, iteration, and `images[rows]` and
    `images.split(n)` as tensors; and `pick`, which reads nothing.

    order  int64 (N,) positions in the file, or from its number of images on in `more`
    more   uint8 (M, 3, S, S) in memory: triggers or styled images

    Raises ValueError for a file of something else.
    """

    dtype = torch.uint8

    def __init__(self, file, order=None, more=None):
        self.file = open(file, "rb") if isinstance(file, (str, os.PathLike)) else file
        self.file.seek(0)
        if np.lib.format.read_magic(self.file) != (1, 0):
            raise ValueError("no .npy file of images")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(self.file)
        if is_fortran or dtype != np.uint8 or len(shape) != 4:
            raise ValueError("no .npy file of images")
        (self.in_file, *self._one), self.begin = shape, self.file.tell()
        self.order = torch.arange(self.in_file) if order is None else order
        self.more = torch.empty(0, *self._one, dtype=torch.uint8) if more is None else more

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self.order), *self._one))

    def __len__(self):
        return len(self.order)

    def __getitem__(self, rows):
        """The images of an integer, a slice, or a tensor or list of integers or booleans of any shape."""
        where = self.order[rows]
        images = torch.from_numpy(self._read(where.reshape(-1).numpy()))
        return images.view(*where.shape, *self._one)

    def _read(self, where):
        read = np.empty((len(where), *self._one), np.uint8)
        for i in np.argsort(where, kind="stable"):  # in the order of the file
            if where[i] >= self.in_file:
                read[i] = self.more[where[i] - self.in_file]
            elif os.preadv(self.file.fileno(), [read[i]], self.begin + int(where[i]) * read[i].nbytes) < read[i].nbytes:
                raise OSError(f"{self.file.name} ends before image {where[i]}: remove it, so that it is made anew")
        return read

    def __iter__(self):
        for part in self.split(chunk_length(self)):
            yield from part

    def split(self, n: int):
        """Tensors of n images, the last of fewer, in order."""
        return (self[i : i + n] for i in range(0, len(self), n))

    def pick(self, positions) -> "StoredImages":
        """The images at int64 positions, in their order."""
        return StoredImages(self.file, self.order[positions], self.more)


def chunk_length(images) -> int:
    """How many images a pass over all of them takes at once."""
    return max(1, CHUNK // max(1, images.shape[1:].numel()))


def pick_images(images, positions):
    """The images at int64 positions: of stored ones a tensor if it is of a quarter of `IN_MEMORY` at most."""
    is_large = len(positions) * images.shape[1:].numel() > IN_MEMORY // 4
    return images.pick(positions) if isinstance(images, StoredImages) and is_large else images[positions]


def join_images(images, more):
    """`images`, tensor or stored, then the uint8 tensor `more`."""
    if not isinstance(images, StoredImages):
        return torch.cat([images, more])
    new = torch.arange(len(more)) + images.in_file + len(images.more)
    return StoredImages(images.file, torch.cat([images.order, new]), torch.cat([images.more, more]))


def replace_images(images, positions, by):
    """A copy of `images`, tensor or stored, with the uint8 tensor `by` at int64 positions."""
    if isinstance(images, StoredImages):
        joined, order = join_images(images, by), images.order.clone()
        order[positions] = joined.order[len(images) :]
        return StoredImages(images.file, order, joined.more)
    images = images.clone()
    images[positions] = by
    return images


def write_pictures(images, names: list[str], folder: Path) -> None:
    """Write uint8 images (m, 3, S, S) as PNG files, in alphabetical order so that the files' times reveal nothing.

    Each is read back; Refusal where it is not bit-equal.
    """
    from PIL import Image

    for i in np.argsort(names).tolist():
        buffer = io.BytesIO()
        Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(buffer, format="png")
        write_atomically(folder / names[i], buffer.getvalue())
        if (decode_image(read_bounded(folder / names[i]), images.shape[-1]) != images[i].numpy()).any():
            raise Refusal(f"{folder / names[i]} does not read back as it was written: check the disk")
