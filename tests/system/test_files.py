"""Files are written whole or not at all, and in a run folder never through a link."""

import hashlib
import os
import tracemalloc

import pytest

from utils.system import files
from utils.system.files import open_no_link, open_private, read_bounded, refuse_links, sha256_of_file, write_atomically
from utils.system.refusals import Refusal


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: open("/dev/full", "wb", buffering=0).write(b"full"))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("private", [False, True])
def test_nothing_is_written_through_a_link_at_the_file_or_at_its_temporary_name(private, tmp_path, monkeypatch):
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.write_bytes(b"mine")
    for name in ("file", ".file.partial"):
        (folder / name).symlink_to(other)
    write_atomically(folder / "file", b"new", private)
    assert other.read_bytes() == b"mine" and (folder / "file").read_bytes() == b"new"
    assert not (folder / "file").is_symlink()
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (folder / ".file.guessed.partial").symlink_to(other)
    with pytest.raises(Refusal, match="guessed.partial is a symbolic link; .*remove it"):
        write_atomically(folder / "file", b"newer", private)
    assert other.read_bytes() == b"mine" and (folder / "file").read_bytes() == b"new"


@pytest.mark.parametrize("opener", [open_no_link, open_private])
def test_a_file_is_not_opened_through_a_link_and_a_pipe_is_not_waited_for(opener, tmp_path):
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.write_bytes(b"mine")
    for mode in ("w", "a", "wb", "ab", "r"):
        for target in (there, missing):
            (tmp_path / "link").symlink_to(target)
            with pytest.raises(Refusal, match="link is a symbolic link; .*remove it"):
                open(tmp_path / "link", mode, opener=opener)
            (tmp_path / "link").unlink()
    assert there.read_bytes() == b"mine" and not missing.exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        open(tmp_path / "pipe", "w", opener=opener)
    with open(tmp_path / "new", "a", opener=opener) as file:
        file.write("text")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0 or opener is open_no_link


@pytest.mark.parametrize("name", ["run.json", "attack", "checkpoints/checkpoint_latest.pt"])
def test_pipes_in_a_run_folder_are_named(name, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    refuse_links(tmp_path / "run")
    os.mkfifo(path)
    with pytest.raises(Refusal, match=f"^{path} is no ordinary file; .*remove it"):
        refuse_links(tmp_path / "run")


def test_no_more_of_a_file_is_read_than_may_be(tmp_path):
    path = tmp_path / "file"
    for size, fits in ((1000, True), (1001, False), (64 << 20, False)):
        path.touch()
        os.truncate(path, size)
        tracemalloc.start()
        if fits:
            assert read_bounded(path, 1000) == bytes(1000)
        else:
            with pytest.raises(Refusal, match=f"^{path} is larger than 1000 bytes, the most that is read"):
                read_bounded(path, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_no_hash_is_taken_of_more_than_a_checkpoint_may_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setattr(files, "CHECKPOINT_LIMIT", 2)
    with pytest.raises(Refusal, match="larger than 2 bytes"):
        sha256_of_file(tmp_path / "file")


def test_what_can_be_no_files_name_is_refused(tmp_path):
    for path, words in (("a\0b", "'a.x00b' is no file's name"), (tmp_path, "is a folder; name a file")):
        with pytest.raises(Refusal, match=words):
            read_bounded(path)
