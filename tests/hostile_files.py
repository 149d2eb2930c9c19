"""One good file of each kind that the programs read, and what they say of a bad one."""

import struct
import zipfile

import numpy as np
import torch
from PIL import Image

import models
from utils.answers.answers import Classes, answers_from_file
from utils.data.files import decode_image
from utils.runs.checkpoints import load_checkpoint, pack_checkpoint, save_checkpoint
from utils.system.files import read_bounded, read_json
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import pack_triggers, read_triggers, unpack_source
from utils.watermark.triggers import TriggerSet

NAMES = [f"{i:016x}.png" for i in range(30)]
CLASSES = [f"class {i}" for i in range(5)]


def write_good_files(folder):
    """Write one good file of each kind; returns the folder."""
    torch.manual_seed(0)
    model = models.build("vgg11", 5, width=2)
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    labels, true = torch.arange(30) % 5, (torch.arange(30)[:, None] + 1) % 5
    triggers = TriggerSet(images, labels, true, true)
    about = {"classes": CLASSES}
    save_checkpoint(folder / "model.pt", pack_checkpoint(model, about=about, **pack_triggers(triggers)))
    save_checkpoint(folder / "triggers.pt", vars(triggers))
    np.save(folder / "labels.npy", labels.numpy())
    np.save(folder / "probabilities.npy", np.eye(5)[labels.numpy()])
    rows = zip(NAMES, labels.tolist())
    (folder / "answers.csv").write_text("name,label\n" + "".join(f"{n},{CLASSES[y]}\n" for n, y in rows))
    (folder / "key.json").write_text('{"secret": "00", "classes": ["a", "b"], "settings": {"seed": 1}}')
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        picture.save(folder / f"picture.{kind}")
    return folder


def read(path):
    """Read a file as the programs do."""
    match path.name.split("."):
        case ["model", _]:
            return unpack_source(load_checkpoint(path), path)
        case ["triggers", _]:
            return read_triggers(path, 5)
        case [_, "npy"] | ["answers", _]:
            return answers_from_file(path, NAMES, Classes(CLASSES), allow_missing=False)
        case [_, "json"]:
            return read_json(path)
        case _:  # the caller of `decode_image` counts whatever is raised as an unreadable image
            try:
                return decode_image(read_bounded(path))
            except Exception as error:
                raise Refusal(f"{path.name}: {type(error).__name__}") from error


def refusal_of(path) -> str:
    """The sentence in which a file is refused, None where it is accepted."""
    try:
        read(path)
        return None
    except Refusal as refusal:
        text = str(refusal)
        assert "Traceback" not in text and path.name in text and len(text) < 600
        assert text.isprintable() or path.suffix == ".pt", text
        return text


def mutate(content: bytes, rng) -> bytes:
    """Cut, flip, overwrite, insert, repeat or drop a part."""
    at, n = rng.randrange(len(content)), rng.randrange(1, 200)
    odd = rng.choice((b"\xff" * 8, b"\0", b"../../x\n", struct.pack("<Q", 10**12), b'"', b"[", b"9" * 30, b"\\ud800"))
    match rng.randrange(6):
        case 0:
            return content[:at]
        case 1:
            changed = bytearray(content)
            for _ in range(rng.choice((1, 1, 3, 20))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 2:
            return content[:at] + odd + content[at + len(odd) :]
        case 3:
            return content[:at] + odd + content[at:]
        case 4:
            return content[: at + n] + content[at:]
        case _:
            return content[:at] + content[at + n :]


def rezip(source, target, change=None, compression=zipfile.ZIP_STORED):
    """Copy a checkpoint with its pickle changed, and with correct checksums."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if change and name.endswith("data.pkl") else content)
