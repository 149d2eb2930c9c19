"""Files made to hurt: refused in one sentence, never executed, never a traceback."""

import io
import os
import pickle
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch

import models
from utils.data.folder import decode_image
from utils.ownership.answer_files import answers_from_file
from utils.runs.checkpoints import load_checkpoint, pack_checkpoint, save_checkpoint
from utils.system.files import read_json
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded
from utils.watermark.trigger_files import pack_triggers, read_triggers, unpack_source
from utils.watermark.triggers import TriggerSet

NAMES = [f"{i:016x}.png" for i in range(30)]
CLASSES = [f"class {i}" for i in range(5)]
MUTATIONS = 200


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    model = models.build("vgg11", 5, width=2)
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    labels, true = torch.arange(30) % 5, (torch.arange(30)[:, None] + 1) % 5
    trigger = TriggerSet(images, labels, true, true)
    checkpoint = pack_checkpoint(model, "vgg11", epoch=3, figures={"a": 1.5}, about={"classes": CLASSES})
    save_checkpoint(folder / "model.pt", checkpoint | pack_triggers(trigger))
    save_checkpoint(folder / "triggers.pt", trigger._asdict())
    np.save(folder / "labels.npy", labels.numpy())
    np.save(folder / "probabilities.npy", np.eye(5)[labels.numpy()])
    rows = zip(NAMES, labels.tolist())
    (folder / "answers.csv").write_text("name,label\n" + "".join(f"{n},{CLASSES[y]}\n" for n, y in rows))
    (folder / "key.json").write_text('{"salt": "00", "classes": ["a", "b"], "settings": {"seed": 1}}')
    from PIL import Image

    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        picture.save(folder / f"picture.{kind}")
    return folder


def read(path):
    """Take a file up as the programs do."""
    match path.name.split("."):
        case ["model", _]:
            return unpack_source(load_checkpoint(path), path)
        case ["triggers", _]:
            return read_triggers(path, 5)
        case [_, "npy"] | ["answers", _]:
            return answers_from_file(path, NAMES, CLASSES, allow_missing=False)
        case [_, "json"]:
            return read_json(path)
        case _:  # the caller of `decode` counts whatever is raised as an unreadable image
            try:
                return decode_image(read_bounded(path))
            except Exception as error:
                raise Refusal(f"{path.name}: {type(error).__name__}") from error


def refused(path) -> str:
    """The sentence that a file is refused with, None where it is taken."""
    try:
        read(path)
        return None
    except Refusal as refusal:
        text = str(refusal)
        assert "Traceback" not in text and path.name in text and len(text) < 600
        assert text.isprintable() or path.suffix == ".pt", text
        return text


def mutate(content: bytes, rng) -> bytes:
    """Cut, flip, overwrite, repeat or drop a part."""
    kind, changed = rng.randrange(6), bytearray(content)
    at = rng.randrange(len(content))
    if kind == 0:
        return content[:at]
    if kind == 1:
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        changed[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"../../x\n", struct.pack("<Q", 10**12)))
    elif kind == 3:
        changed[at:at] = changed[at : at + rng.randrange(1, 200)]
    elif kind == 4:
        del changed[at : at + rng.randrange(1, 200)]
    else:  # near the front, where headers are
        changed[rng.randrange(min(300, len(changed)))] = rng.randrange(256)
    return bytes(changed)


KINDS = ("model.pt", "triggers.pt", "labels.npy", "probabilities.npy", "answers.csv", "key.json", "picture.png",
         "picture.jpeg", "picture.gif", "picture.bmp", "picture.tiff", "picture.webp", "picture.ppm")


@pytest.mark.parametrize("name", KINDS)
def test_mutations(name, files, tmp_path):
    """`MUTATIONS` damaged versions of each kind; a Refusal or a reading, nothing else. Checkpoints: refused, always."""
    good, rng = (files / name).read_bytes(), random.Random(name)
    assert refused(files / name) is None
    taken = count = 0
    while count < MUTATIONS:
        bad = mutate(good, rng)
        if bad == good:
            continue
        count += 1
        (tmp_path / name).write_bytes(bad)
        taken += refused(tmp_path / name) is None
    assert [f.name for f in tmp_path.iterdir()] == [name]
    if name.endswith(".pt"):
        assert taken <= MUTATIONS // 20, taken  # in the gaps between the parts, which nothing reads
    print(name, count - taken, "of", count, "refused")


def pickled(obj) -> bytes:
    return pickle.dumps(obj, protocol=2)


def rezip(source, target, change=None, compression=zipfile.ZIP_STORED):
    """A checkpoint with its pickle changed, and right checksums."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if change and name.endswith("data.pkl") else content)


@pytest.mark.parametrize("name", ["os system", "posix system", "builtins eval", "builtins bytearray", "numpy load",
                                  "subprocess Popen", "torch load"])
def test_a_pickle_that_asks_for_a_function_is_refused_by_its_name(name, files, tmp_path):
    command = b"c" + name.replace(" ", "\n").encode() + b"\n"
    call = b"X" + struct.pack("<I", 5 + len(str(tmp_path))) + f"touch{tmp_path}".encode()[: 5 + len(str(tmp_path))]
    rezip(files / "model.pt", tmp_path / "model.pt", lambda _: b"\x80\x02" + command + b"(" + call + b"tR.")
    assert f"asks for '{name}'" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"model": b}, lambda b: {"query_model": {"state_dict": [b]}}])
def test_bombs_in_every_wrapping(wrap, files, tmp_path):
    bomb = wrap(Bomb(tmp_path / "boom"))
    torch.save(bomb, tmp_path / "model.pt")
    assert refused(tmp_path / "model.pt")
    torch.save(bomb, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert refused(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(pickled(bomb))
    assert refused(tmp_path / "model.pt")
    for name in ("labels.npy", "answers.csv", "key.json"):
        (tmp_path / name).write_bytes(pickled(bomb))
        assert refused(tmp_path / name)
    np.save(tmp_path / "labels.npy", np.array([bomb] * 30, dtype=object), allow_pickle=True)
    assert "plain numbers" in refused(tmp_path / "labels.npy")
    assert not (tmp_path / "boom").exists()


def test_zip_bombs_and_tensors_larger_than_the_file(files, tmp_path):
    path = tmp_path / "model.pt"
    rezip(files / "model.pt", path, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(path)
    torch.save({"model": {"state_dict": {"w": torch.zeros(1).expand(10**9)}, "type": "res18"}}, path)
    assert path.stat().st_size < 10_000 and "larger than what the file holds" in refused(path)
    one = torch.zeros(100_000)
    torch.save({"a": [one[i:] for i in range(500)]}, path)  # many views of one storage
    assert "larger than what the file holds" in refused(path)
    deep = []
    for _ in range(300):
        deep = [deep, deep]  # 2^300 parts where each is counted
    torch.save({"a": deep}, path)
    assert refused(path)


@pytest.mark.parametrize("spoil", [
    lambda c: c["model"].update(type="../../res18"),
    lambda c: c["model"].update(type=["res18"]),
    lambda c: c["model"]["state_dict"].update({"1.linear.bias": torch.zeros(0)}),
    lambda c: c["model"]["state_dict"].update({"1.linear.bias": torch.zeros(5, dtype=torch.int64)}),
    lambda c: c["model"]["state_dict"].update({"1.linear.bias": 7}),
    lambda c: c["model"]["state_dict"].update({"1.layers.0.weight": torch.zeros(1_000_000, 1)}),
    lambda c: c["model"]["state_dict"].pop("1.linear.weight"),
    lambda c: c.update(model=[1, 2]),
    lambda c: c["query_model"]["state_dict"].update(response=torch.full((30,), 5)),
    lambda c: c["query_model"]["state_dict"].update(response=torch.full((30,), -1)),
    lambda c: c["query_model"]["state_dict"].update(query=torch.zeros(30, 3, 32, 33)),
    lambda c: c["query_model"]["state_dict"].update(query=torch.zeros(30, 3, 32, 32, dtype=torch.int64)),
    lambda c: c["query_model"]["state_dict"].update(original_response=torch.zeros(4)),
    lambda c: c["query_model"].update(state_dict="none"),
])
def test_checkpoints_whose_parts_lie(spoil, files, tmp_path):
    checkpoint = load_checkpoint(files / "model.pt")
    spoil(checkpoint)
    save_checkpoint(tmp_path / "model.pt", checkpoint)
    assert refused(tmp_path / "model.pt")


def npy(descr, shape, body=b"", fortran=False, version=b"\x01\x00") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize("content", [
    npy("'<f8'", "(1000000000000,)"), npy("'<f8'", "(30, 1000000000)"), npy("'<i8'", "(-30,)", b"x" * 240),
    npy("'|O'", "(30,)", b"x" * 240), npy("[('a', '<i8')]", "(30,)", b"x" * 240), npy("'<U8'", "(30,)", b"x" * 960),
    npy("'<i8'", "(30", b"x" * 240), npy("'<i8'", "__import__('os').system('true')", b"x" * 240),
    npy("'<i8'", "(30,)", b"x" * 240, version=b"\x03\x00"), npy("'<i8'", "(30,)", b"x" * 241),
    npy("'<c16'", "(30,)", b"x" * 480), npy("'<M8'", "(30,)", b"x" * 240),
    npy("'<i8'", "(30,)", b"\xff" * 239 + b"\x7f"),
    b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, b"PK\x03\x04" + b"\0" * 100, b"",
])
def test_npy_headers_that_lie(content, tmp_path):
    (tmp_path / "labels.npy").write_bytes(content)
    assert refused(tmp_path / "labels.npy")


@pytest.mark.parametrize("content", [
    b'"' + b"a" * 200_000, b"a,b\n" * 10, b"\xff\xfe" + "a,1\n".encode("utf-16-le"), b"name,label\n=1+1,@SUM(A1)\n",
    b"../../key.json,class 1\n", b"/etc/passwd,class 1\n", NAMES[0].encode() + b"\0,class 1\n", b"," * 100_000,
    NAMES[0].encode() + b",\x1b[31mclass\n", b"\n" * 100_000, f"{NAMES[0]},{'9' * 5000}\n".encode(),
    f"{NAMES[0]},\u0664\n".encode(),
])
def test_csv_files_that_are_none(content, tmp_path):
    (tmp_path / "answers.csv").write_bytes(content)
    text = refused(tmp_path / "answers.csv")
    assert text and "\x1b" not in text


def png(width, height, body) -> bytes:
    chunk = lambda kind, content: (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_picture_bombs(tmp_path, capfd):
    for size in ((100_000, 100_000), (2**31 - 1, 1), (20_000, 5_000)):
        (tmp_path / "picture.png").write_bytes(png(*size, zlib.compress(b"\0" * 10_000)))
        assert refused(tmp_path / "picture.png")
    packed = zlib.compress(b"\0" * 10**7)
    (tmp_path / "picture.png").write_bytes(png(32, 32, packed))  # more pixels than were announced
    refused(tmp_path / "picture.png")
    text = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(touch boom) run\nshowpage\n%%EOF\n")
    (tmp_path / "picture.png").write_bytes(text.getvalue())  # Pillow would hand it to Ghostscript
    assert refused(tmp_path / "picture.png")
    assert capfd.readouterr().err == ""


def test_no_path_of_a_file_is_opened(files, tmp_path, monkeypatch):
    """Names in checkpoints and answers that lead elsewhere: only the file itself is opened."""
    opened, real = [], os.open
    rezip(files / "model.pt", tmp_path / "model.pt", lambda c: c.replace(b"class 1", b"../../x"))
    load_checkpoint(tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        archive.writestr("../../outside", "x")
    monkeypatch.setattr(os, "open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    refused(tmp_path / "model.pt")
    assert not (tmp_path.parent.parent / "outside").exists() and set(opened) <= {str(tmp_path / "model.pt")}
