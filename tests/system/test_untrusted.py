"""Files made to do harm: refused in one sentence, never executed, never a traceback."""

import os
import pickle
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hostile_files import mutate, refusal_of, rezip

from utils.system.tensors import read_tensors

MUTATIONS = 100


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


KINDS = ("model.pt", "triggers.pt", "labels.npy", "probabilities.npy", "answers.csv", "key.json", "picture.png",
         "picture.jpeg", "picture.gif", "picture.bmp", "picture.tiff", "picture.webp", "picture.ppm")


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_or_read_and_never_crash(name, files, tmp_path):
    """`MUTATIONS` damaged versions of each kind are refused or read; of checkpoints, nearly all are refused."""
    good, rng, taken = (files / name).read_bytes(), random.Random(name), 0
    assert refusal_of(files / name) is None
    for _ in range(MUTATIONS):
        (tmp_path / name).write_bytes(bad := mutate(good, rng))
        taken += bad != good and refusal_of(tmp_path / name) is None
    assert [f.name for f in tmp_path.iterdir()] == [name]
    if name.endswith(".pt"):
        assert taken <= MUTATIONS // 20, taken  # damaged between the parts, where nothing is read


def test_the_refusal_of_a_pickle_names_the_function_it_asks_for(files, tmp_path):
    call = b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR."
    rezip(files / "model.pt", tmp_path / "model.pt", lambda _: call)
    assert "asks for 'os system'" in refusal_of(tmp_path / "model.pt")


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"model": b}, lambda b: {"query_model": {"state_dict": [b]}}])
def test_pickles_that_would_run_code_are_refused_in_every_kind_of_file(wrap, files, tmp_path):
    bomb = wrap(Bomb(tmp_path / "boom"))
    torch.save(bomb, tmp_path / "model.pt")
    assert refusal_of(tmp_path / "model.pt")
    torch.save(bomb, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert refusal_of(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(pickled := pickle.dumps(bomb, protocol=2))
    assert refusal_of(tmp_path / "model.pt")
    for name in ("labels.npy", "answers.csv", "key.json"):
        (tmp_path / name).write_bytes(pickled)
        assert refusal_of(tmp_path / name)
    np.save(tmp_path / "labels.npy", np.array([bomb] * 30, dtype=object), allow_pickle=True)
    assert "plain numbers" in refusal_of(tmp_path / "labels.npy")
    assert not (tmp_path / "boom").exists()


def write_pickle(path, content: bytes, **records):
    """A checkpoint with this pickle, protocol 2, and records of so many bytes of zeros."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("a/version", "3\n")
        for key, size in records.items():
            archive.writestr(f"a/data/{key}", b"\0" * size)


def text(string: str) -> bytes:
    return b"X" + len(string.encode()).to_bytes(4, "little") + string.encode()


def test_what_torch_before_2_10_does_not_check_is_refused(tmp_path):
    """CVE-2026-24747: a storage of more numbers than its record has, items that are set in what is no dict."""
    path, number = tmp_path / "model.pt", lambda n: b"J" + n.to_bytes(4, "little")

    def tensor(n):
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("w") + text("cpu") + number(n) + b"tQ"
        return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + b"(" + number(n) + b"t(" + number(1)
                + b"t\x89ccollections\nOrderedDict\n)RtR")

    write_pickle(path, b"}" + text("w") + tensor(4) + b"s", w=16)
    assert "larger" not in refusal_of(path)  # it holds no model, and its one tensor is as large as its record
    write_pickle(path, b"}" + text("w") + tensor(3) + b"s", w=16)
    assert "larger than what the file holds" in refusal_of(path)  # or smaller
    write_pickle(path, b"}" + text("w") + tensor(100) + b"s", w=16, unused=400)
    assert "larger than what the file holds" in refusal_of(path)
    write_pickle(path, b"}" + text("w") + tensor(4) + number(0) + number(1) + b"ss", w=16)
    assert "sets items of what is no dict" in refusal_of(path)


DEEP = b")" + b"\x85" * 10**6  # nested tuples, whose hash would overflow the interpreter's stack


@pytest.mark.parametrize("operations", [
    b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("V2147483647") + b"\x85R\x85R",
    b"c_codecs\nencode\n" + text("a") + text("punycode") + b"\x86R", text("os.system") + b")R",
    b"c_codecs\nencode\n" + text("a" * 1000) + text("latin1") + b"\x86R",  # of a text that the memo would repeat
    b"ctorch\ndevice\n" + DEEP + b"\x85R",
    b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00](" + b"K\x01" * 1000 + b"e)tR",
    b"ccollections\nOrderedDict\n}\x85R", b"}" + DEEP + b"Ns", b"ctorch.serialization\n_get_layout\n" + DEEP + b"\x85R",
    b"ctorch\nSize\n](" + b"K\x01" * 1000 + b"e\x85R", b"ctorch\nSize\n}\x85R",  # a list or dict for a shape
    b"ctorch\nSize\n)R}b", b"}" + b"}b" * 101,
    b"cnumpy\ndtype\n" + text("f8") + b"\x85R(K\x03" + text("<") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x04tb"])
def test_what_would_cost_memory_or_time_is_refused(operations, tmp_path):
    write_pickle(tmp_path / "model.pt", operations)
    assert "its pickle" in refusal_of(tmp_path / "model.pt")


def test_pytorch_reads_the_records_that_were_checked(tmp_path):
    """Of a file with two zip directories Python's reader takes the last one and PyTorch's the one before."""
    one, two, both = (tmp_path / f"{name}.pt" for name in ("one", "two", "model"))
    write_pickle(one, b"}" + text("k") + text("unchecked") + b"s", w=4)
    write_pickle(two, b"}" + text("k") + text("and right") + b"s", w=4)
    both.write_bytes(one.read_bytes()[:-22] + two.read_bytes())  # without the first one's end
    assert read_tensors(both) == {"k": "and right"}
    for other in ("a/DATA.PKL", "b/data.pkl", "a/data/W"):  # which PyTorch might take instead
        write_pickle(both, b"}", w=4)
        with zipfile.ZipFile(both, "a") as archive:
            archive.writestr(other, b"")
        assert "its parts overlap" in refusal_of(both)


def test_zip_bombs_and_tensors_larger_than_the_file_are_refused(files, tmp_path):
    path, one, deep = tmp_path / "model.pt", torch.zeros(100_000), []
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        rezip(files / "model.pt", path, compression=compression)
        assert "compressed" in refusal_of(path)
    for large in ({"w": torch.zeros(1).expand(10**9)}, [one[i:] for i in range(500)]):  # views of one storage
        torch.save({"model": large}, path)
        assert "larger than what the file holds" in refusal_of(path)
    torch.save({"model": [one, one[1:]]}, path)
    assert "larger" not in refusal_of(path)  # twice the file's size is borne, three times is not
    torch.save({"model": [one, one[1:], one[2:]]}, path)
    assert "larger than what the file holds" in refusal_of(path)
    for _ in range(300):
        deep = [deep, deep]  # 2^300 parts if each is counted
    torch.save({"a": deep}, path)
    assert refusal_of(path)


def write_nested(path, inner: bytes, layers: int):
    """A zip archive of which each record holds all later ones: `layers` times as many bytes as the file has."""
    header = lambda name, content: (zlib.crc32(content), len(content), len(content), len(name))
    content, central, names = inner, [], [b"a/data/%d" % i for i in range(layers)] + [b"a/data.pkl"]
    for name in reversed(names):
        central.append((name, header(name, content), len(content)))
        content = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, *header(name, content), 0) + name + content
    directory = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, *about, 0, 0, 0, 0, 0,
                    len(content) - size - 30 - len(name)) + name for name, about, size in central)
    path.write_bytes(content + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(central), len(central),
                                                       len(directory), len(content), 0))


def test_records_inside_one_another_are_refused(tmp_path):
    """300 records of a file of 30 kB would be 9 MB; before 3.11.8 Python's reader takes them."""
    write_nested(tmp_path / "model.pt", b"\x80\x02}" + text("x" * 20_000) + b"K\x00s.", 300)
    assert "its parts overlap" in refusal_of(tmp_path / "model.pt")


def test_records_pickles_and_parts_are_bounded(files, tmp_path, monkeypatch):
    path, wide, deep = tmp_path / "model.pt", 0, 0
    for _ in range(5):
        wide = [wide] * 12  # together 12^5 parts
    for _ in range(30):
        deep = [deep]
    for nested in (wide, deep):
        torch.save({"a": nested}, path)
        assert "nested too deeply or with too many parts" in refusal_of(path)
    path.write_bytes((files / "model.pt").read_bytes())
    for limit, value, words in (("TEXT_LIMIT", 1000, "no pickle of a sensible size"),
                                ("ENTRIES_LIMIT", 10, "of more parts than a checkpoint has"),
                                ("CHECKPOINT_LIMIT", 1000, "larger than 1000 bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(f"utils.system.tensors.{limit}", value)
            assert words in refusal_of(path)
    assert refusal_of(path) is None
