"""Image files into pixels, and images that stay on the disk.

From top to bottom: a user's folder (`-dt folder`), decoding, torchvision's archives, and `StoredImages`, which stand
where a tensor of more than `IN_MEMORY` bytes would. Files are untrusted: a size limit, a fixed list of formats, and
copies are written under names at which nobody can have put a link.
"""

import contextlib
import copy
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

from models import SIZE
from models.outside import describe_error
from utils.system.files import plain_name, read_bounded, sync, write_atomically, wrong_kind
from utils.system.refusals import Refusal

FILE_LIMIT = 256 << 20  # bytes of one image file
MEGAPIXELS = 50  # of one image, at most
IN_MEMORY = 3 << 26  # bytes of a data set that is held as tensors, up to four copies; 60,000 images of 32 x 32 fit
CHUNK = 1 << 26  # bytes that a pass over all images reads at once
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "PPM", "TIFF")  # which Pillow tries, whatever a file's name
ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".ppm", ".pgm", ".pnm", ".pfm",
           ".tif", ".tiff")
TEST_PARTS = ("test", "val", "valid", "validation")  # beside train/: the test images, then the held-out images


def load_folder(root: Path, skip_bad_images: bool, size: int, flag: str):
    """The images below `root`: [(images, labels) of training, of test, of held-out images if any], classes, notes.

    `root` holds `train/<class>/*` and `test/<class>/*` (or val, see `TEST_PARTS`), or `<class>/*` or `train/<class>/*`
    alone; then a fifth, drawn with seed 0, becomes the test set. Held-out images are those of val/ beside train/ and
    test/. The notes name what is left out. Images are uint8 (N, 3, size, size), `StoredImages` where they are many.
    Raises Refusal, which names `flag`, for missing classes and unreadable images.
    """
    where = f"{flag} {root}"
    if not root.is_dir():
        raise Refusal(f"{where}: no such folder; it should hold train/<class>/ and test/<class>/ images")
    parts, notes = _parts(root)
    named = [_class_folders(part, where) for part in parts]
    folders = list(named[0].values())
    if len(folders) < 2:
        found = f"only the class {folders[0]}" if folders else "no class folders"
        raise Refusal(f"{where}: {found} in {parts[0]}; a classifier needs two class folders or more")
    for part, others in zip(parts[1:], named[1:]):
        if unknown := [name for key, name in others.items() if key not in named[0]]:
            raise Refusal(f"{where}: {part.name} has classes that {parts[0].name} has not: {some(unknown)}")
    found = [(path, label, i) for i, part in enumerate(parts) for label, key in enumerate(named[0])
             for path in image_files(part / named[i].get(key, key))]
    filled, left_out = {place[1:] for place in found}, _left_out(parts)
    empty = [parts[0] / name for label, name in enumerate(folders) if (label, 0) not in filled]
    empty += [part for i, part in enumerate(parts) if i not in {place for _, place in filled}]
    if empty:
        raise Refusal(f"{where}: {empty[0]} holds no images{left_out}; parts are train/, test/, val/ of class folders")
    notes += [where + left_out] if left_out else []
    files, labels, place = zip(*found)

    images, bad = _decode_files(root, files, skip_bad_images, size, where)
    from PIL import Image

    for path in files[:: max(1, len(files) // 20)]:  # an unreadable one is among those that are skipped
        with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as one:
            if one.size != (size, size):
                notes.append(f"images are resized to {size} x {size} pixels (--image-size N); {Path(path).name} "
                             f"has {one.width} x {one.height}")
                break
    good = torch.tensor([path not in bad for path in files])
    labels, place = torch.tensor(labels)[good], torch.tensor(place)[good]
    if bad:
        images = pick_images(images, good.nonzero().flatten())
        notes.append(f"skipped {len(bad)} unreadable images: {some(list(bad), 20)}")
    flat = _share_of_one_colour(images)
    if flat > 0.05:
        notes.append(f"warning: {100 * flat:.0f} % of the images decode to nearly one colour, so there is little to "
                     "learn from them: look at what a viewer shows, and save shapes that are in an alpha channel "
                     "alone, or few of 16 bits, as ordinary 8-bit images")
    if len(parts) > 1:
        chosen = [(place == i).nonzero().flatten() for i in range(len(parts))]
    else:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        chosen = order.split([len(labels) - len(labels) // 5, len(labels) // 5])
    if len(chosen[0]) < 20:
        raise Refusal(f"{where}: {len(chosen[0])} training images are too few; 20 are the least")
    if not all(map(len, chosen)):
        raise Refusal(f"{where}: no readable {'held-out' if len(chosen[1]) else 'test'} images are left")
    # a class whose folder's name is no Unicode is called what the terminal shows of it
    classes = [name.encode(errors="backslashreplace").decode() for name in folders]
    return [(pick_images(images, positions), labels[positions]) for positions in chosen], classes, notes


def _share_of_one_colour(images) -> float:
    """Share of the images (N, 3, S, S) of which no channel spans more than 16 of 256 levels."""
    ranges = [part.flatten(2).aminmax(dim=2) for part in images.split(chunk_length(images))]
    spans = torch.cat([(high - low).amax(1) for low, high in ranges])
    return float((spans <= 16).double().mean())


def some(names: list[str], n: int = 5) -> str:
    """The first n names, for a sentence."""
    return ", ".join(names[:n]) + (", ..." if names[n:] else "")


def _parts(root: Path) -> tuple[list[Path], list[str]]:
    """Folders of the classes, for training, test and held-out images if there are, and notes on what is which."""
    known = {name.lower(): root / name for name in _subfolders(root)}
    tests = [known[name] for name in TEST_PARTS if name in known]
    others = set(known) - {"train", *TEST_PARTS}
    if "train" not in known or not (tests or _subfolders(known["train"]) and not others):
        return [root], []
    parts = [known["train"], *tests[: 2 if "test" in known else 1]]
    left_out = sorted(path.name for path in set(known.values()) - set(parts))
    if [part.name.lower() for part in parts] == ["train", "test"] and not left_out:
        return parts, []
    uses = zip(("training", "test", "validation and trigger"), parts)
    note = f"{root}: " + ", ".join(f"the {use} images are those of {part.name}/" for use, part in uses)
    if len(parts) == 1:
        note += ", of which a fifth, drawn with seed 0, is the test set"
    return parts, [note + (f"; left out are the folders {some(left_out)}" if left_out else "")]


def _left_out(parts: list[Path]) -> str:
    """": left out are ..." with what is below `parts` and not read as an image, "" without any."""
    found = [path for part in parts for path in image_files(part)]
    for folder in (part / name for part in parts for name in _subfolders(part)):
        found += [str(folder / name) for name in sorted(os.listdir(folder))
                  if not name.startswith(".") and not name.lower().endswith(ENDINGS)]
    if not found:
        return ""
    told = some([os.path.relpath(path, parts[0].parent) for path in found])
    return f": left out are {len(found)} files and folders that are no image in a class's own folder ({told})"


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(part: Path, where: str) -> dict[str, str]:
    """{name as answers give it, see `plain_name`: name of the folder}, in the order of the latter.

    Raises Refusal, beginning with `where`, where two folders have one such name: no answer could tell them apart.
    """
    found = {}
    for name in _subfolders(part):
        if not (key := plain_name(name)):
            raise Refusal(f"{where}: the name of the folder {name!r} in {part} is spaces alone: rename it")
        if key in found:
            raise Refusal(f"{where}: the folders {ascii(found[key])} and {ascii(name)} in {part} have one name but for "
                          "spaces around it or the way in which accents are written: rename or join them")
        found[key] = name
    return found


def image_files(folder: Path) -> list[str]:
    """Paths of the image files in `folder` itself, in the order of their names; none without a folder."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [str(folder / name) for name in names if name.lower().endswith(ENDINGS) and not name.startswith(".")]


def read_images(files: list[str], size: int, flag: str):
    """uint8 (N, 3, size, size) of image files; Refusal, beginning with `flag`, for one that cannot be read."""
    images = np.concatenate(list(_decoded(files, size, bad := {})))
    for path, why in bad.items():
        raise Refusal(f"{flag}: {path} cannot be read ({why}); mend or remove it")
    return torch.from_numpy(images)


def _decode_files(root: Path, files: list[str], skip_bad_images: bool, size: int, where: str):
    """uint8 images (N, 3, size, size) of the files, and {path: reason} of the unreadable ones, which are black.

    They are kept in `root/.decoded-<hash of all names and bytes>.npy`, which is used only if nothing changed. Raises
    Refusal, beginning with `where`, for unreadable files unless `skip_bad_images`, and where many images have no room.
    """
    digest = hashlib.sha256(f"{size}x{size} RGB bilinear 3".encode())
    for path in tqdm(files, desc="reading images", unit="image", disable=None, leave=False):
        try:
            content = read_bounded(path, FILE_LIMIT)
        except (OSError, Refusal):
            content = b""  # the decoding names it as unreadable
        digest.update(f"{os.path.relpath(path, root)}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    ending = ".npy" if size == SIZE else f"-{size}.npy"
    cache, bad = root / f".decoded-{digest.hexdigest()[:32]}{ending}", {}
    images = _kept(cache, (len(files), 3, size, size), _decoded(files, size, bad), where, bad)
    if bad and not skip_bad_images:
        told = [f"{os.path.relpath(path, root)} ({why})" for path, why in bad.items()]
        raise Refusal(f"{where}: {len(bad)} of {len(files)} images cannot be read: {some(told)}; mend or remove them, "
                      "or pass --skip-bad-images")
    name, digit = f".decoded-{'[0-9a-f]' * 32}", "[0-9a-f]"
    with contextlib.suppress(OSError):
        old = set() if bad else set(root.glob(f"{name}{ending}")) - {cache}
        partial = root.glob(f"{name}*.{digit * 8}")  # of processes that were killed, where they are a day old
        for path in old | {path for path in partial if time.time() - path.lstat().st_mtime > 86_400}:
            path.unlink()
    return images, bad


def _decoded(files: list[str], size: int, bad: dict):
    """The pixels (1, 3, size, size) of each file; black where it cannot be read, which enters `bad` with the reason."""
    for path in tqdm(files, desc="decoding images", unit="image", disable=None, leave=False):
        try:
            pixels = decode_image(read_bounded(path, FILE_LIMIT), size)
        except Exception as error:  # a damaged image may raise nearly anything
            unknown = type(error).__name__ == "UnidentifiedImageError"  # whose own text is an address in memory
            why = "no whole PNG, JPEG or other image that is read" if unknown else describe_error(error)
            bad[path] = str(error) if isinstance(error, Refusal) else wrong_kind(path) or why
            pixels = np.zeros((3, size, size), np.uint8)
        yield pixels[None]


def decode_image(content: bytes, size: int = SIZE) -> np.ndarray:
    """One encoded image -> uint8 (3, size, size) RGB as a viewer shows it, resized bilinearly.

    It is turned as its EXIF says, and what is transparent is white. 16 bits are scaled to 8; see `_scaled` for numbers
    that have no range of their own. Raises Refusal for too many pixels and for numbers that are not finite, and
    whatever Pillow raises. Only `FORMATS` are tried, because Pillow would hand an EPS file to Ghostscript.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            is_huge = picture.width * picture.height > MEGAPIXELS * 1_000_000
        except Image.DecompressionBombError:
            is_huge = True
        if is_huge:
            raise Refusal(f"it has more than {MEGAPIXELS} megapixels, the most that is read; make it smaller")
        is_16_bit = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
        is_number = picture.mode[0] in "IF"
        white_is_zero = picture.format == "TIFF" and picture.tag_v2.get(262) == 0  # Pillow turns over 8 bits alone
        with contextlib.suppress(Exception):  # an orientation that cannot be read is none
            picture = ImageOps.exif_transpose(picture)
        if is_number:
            values = np.asarray(picture.convert("F"), np.float32)
            levels = values / 257 if is_16_bit else _scaled(values)  # 65535 / 255
            if white_is_zero:
                levels = 255 - levels
            if isinstance(invisible := picture.info.get("transparency"), int):
                levels = np.where(values == invisible, 255, levels)
            picture = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
        elif picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _scaled(values) -> np.ndarray:
    """Levels 0..255 of numbers without a stated range: those in [0, 1] times 255, in [0, 255] as they are, others such
    that the least is black and the greatest is white."""
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):  # a NaN shows in both
        raise Refusal("its numbers are not all finite")
    if low >= 0 and high <= 1:
        return values * 255
    return values if low >= 0 and high <= 255 else (values - low) / max(high - low, 1e-30) * 255


def load_torchvision(name: str, root: Path, size: int, flag: str, folder_flag: str):
    """[(images, labels) of training, of test] and the classes; downloaded where they are not in `root`.

    Images are uint8 (N, 3, size, size), `StoredImages` where they are many. Raises Refusal, which names `flag` and
    the flag of `root`, for an archive that is not there and cannot be had.
    """
    from torchvision import datasets

    load = getattr(datasets, name.upper())
    parts = ({"split": "train"}, {"split": "test"}) if name == "svhn" else ({"train": True}, {"train": False})
    made = not root.exists()
    try:
        parts = [load(root, **part, download=True) for part in parts]
    except PermissionError:
        raise
    except Exception as error:  # torchvision raises many kinds: URLError, RuntimeError, EOFError, ...
        with contextlib.suppress(OSError):
            if made:
                root.rmdir()  # which torchvision has made; it stays where something is in it
        archive = getattr(load, "filename", "train_32x32.mat and test_32x32.mat")
        raise Refusal(f"{flag} {name}: {archive} is neither in {root.resolve()} nor could it be downloaded or read "
                      f"({type(error).__name__}: {str(error)[:120]}); download it elsewhere, place it in that "
                      f"folder (or name its folder with {folder_flag}) and run again; {flag} digits needs no "
                      "download") from error
    if name == "svhn":
        sets, classes = [(part.data, part.labels) for part in parts], [str(i) for i in range(10)]
    else:
        sets, classes = [(part.data.transpose(0, 3, 1, 2), part.targets) for part in parts], list(parts[0].classes)
    images = [torch.from_numpy(np.ascontiguousarray(images)) for images, _ in sets]
    return list(zip(resize_parts(images, size, root / f".resized-{name}-{size}.npy", f"{folder_flag} {root}"),
                    (torch.as_tensor(labels).long() for _, labels in sets))), classes


def resize_parts(parts: list, size: int, cache: Path, where: str) -> list:
    """uint8 images (N, 3, size, size) of each part (N, 3, H, W), resized bilinearly and with antialiasing.

    They are kept in `cache`, one part after the other, where a later call finds them. Raises Refusal, beginning with
    `where`, where many have no room.
    """
    if all(images.shape[-2:] == (size, size) for images in parts):
        return parts
    lengths = [len(images) for images in parts]
    images = _kept(cache, (sum(lengths), 3, size, size), _resized(parts, size), where)
    return [pick_images(images, part) for part in torch.arange(len(images)).split(lengths)]


def _resized(parts: list, size: int):
    """uint8 arrays (n, 3, size, size), which together are the images of all parts."""
    at_once = max(1, CHUNK // (4 * 3 * size**2))  # of a float32 batch; the result does not depend on it
    chunks = [chunk for images in parts for chunk in images.split(at_once)]
    for chunk in tqdm(chunks, desc=f"resizing to {size} pixels", disable=None, leave=False):
        x = torch.nn.functional.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True)
        yield x.round().clamp(0, 255).to(torch.uint8).numpy()


def _kept(cache: Path, shape: tuple, chunks, where: str, bad=()):
    """uint8 images of this shape (N, 3, S, S), from the .npy file `cache` or else from the arrays of `chunks`.

    A tensor, or, of more than `IN_MEMORY` bytes, `StoredImages`. What comes from `chunks` is kept in `cache`, unless
    these enter something into `bad`. Refusal, beginning with `where`, where more than `IN_MEMORY` cannot be kept.
    """
    is_large = math.prod(shape) > IN_MEMORY
    with contextlib.suppress(Exception):  # there is no copy, or a damaged one, at whose header numpy raises anything
        images = StoredImages(cache)
        if images.shape == shape:
            return images if is_large else images[:]
    if not is_large:
        chunks = [np.concatenate(list(chunks))]
    partial = cache.with_suffix(f".{secrets.token_hex(4)}")  # nobody can know the name before
    try:
        with open(partial, "xb") as file:  # "x" follows no link
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for chunk in chunks:
                file.write(chunk.tobytes())
            file.flush()
            sync(file.fileno())  # else a power cut may leave the name on a file of zeros
        images = StoredImages(partial)  # can be read whatever becomes of its name
        if not bad:
            os.replace(partial, cache)
    except OSError as error:
        if is_large:
            raise Refusal(f"{where}: {math.prod(shape) >> 20} MiB of images of {shape[-1]} pixels cannot be kept "
                          f"there ({error.strerror}); make room, pass a smaller --image-size, or name another folder "
                          "where you may write") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return images if is_large else torch.from_numpy(chunks[0])


class StoredImages:
    """uint8 images (N, 3, S, S) of a .npy file, then those of a tensor `more`, which are triggers or styled images.

    Rows are read when they are asked for and are not mapped, so that what was read before does not count as memory of
    the process; the system's own cache keeps what is read often. Offers what this project asks of a tensor of images:
    `shape`, `len`, iteration, `images[rows]` and `images.split(n)`; and `pick`, which reads nothing. Raises ValueError
    for a file of something else.
    """

    def __init__(self, path):
        if not os.path.isfile(path):  # numpy would wait for the writer of a pipe
            raise ValueError("no ordinary file")
        images = np.load(path, mmap_mode="r")  # its header alone; what is mapped is let go with this name
        if images.dtype != np.uint8 or images.ndim != 4 or not images.flags.c_contiguous:
            raise ValueError("no .npy file of images")
        self.file, self.begin, (self.in_file, *self._one) = open(path, "rb"), images.offset, images.shape
        self.order = torch.arange(self.in_file)  # (N,) positions in the file, or, from `in_file` on, in `more`
        self.more = torch.empty(0, *self._one, dtype=torch.uint8)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self.order), *self._one))

    def __len__(self):
        return len(self.order)

    def __getitem__(self, rows):
        """The images of an integer, a slice, or a tensor or list of integers or booleans of any shape."""
        where = self.order[rows]
        flat, read = where.flatten().numpy(), np.empty((where.numel(), *self._one), np.uint8)
        for i in np.argsort(flat, kind="stable"):  # in the order of the file
            if flat[i] >= self.in_file:
                read[i] = self.more[flat[i] - self.in_file]
            elif os.preadv(self.file.fileno(), [read[i]], self.begin + int(flat[i]) * read[i].nbytes) < read[i].nbytes:
                raise OSError(f"{self.file.name} ends before image {flat[i]}: remove it, so that it is made anew")
        return torch.from_numpy(read).view(*where.shape, *self._one)

    def split(self, n: int):
        """Tensors of n images, the last of fewer, in order."""
        return (self[i : i + n] for i in range(0, len(self), n))

    def pick(self, positions) -> "StoredImages":
        """The images at int64 positions, in their order."""
        picked = copy.copy(self)
        picked.order = self.order[positions]
        return picked


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
    joined, new = copy.copy(images), torch.arange(len(more)) + images.in_file + len(images.more)
    joined.order, joined.more = torch.cat([images.order, new]), torch.cat([images.more, more])
    return joined


def replace_images(images, positions, by):
    """A copy of `images`, tensor or stored, with the uint8 tensor `by` at int64 positions."""
    order = torch.arange(len(images))
    order[positions] = torch.arange(len(by)) + len(images)
    return pick_images(join_images(images, by), order)


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
