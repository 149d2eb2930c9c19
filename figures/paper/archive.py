"""Results as one small file: tables and pictures, and of every run its settings, metrics and summaries, as .tar.gz.

Two archives of the same results are equal byte by byte: members are sorted and carry no times and no owners.
"""

import contextlib
import gzip
import io
import os
import tarfile
from pathlib import Path

from figures.paper.table_cells import FIGURES, TABLES
from utils.system.refusals import Refusal

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 15 * 10**6  # bytes of an archive without weights
METRICS = "metrics.jsonl"
# What is named here is packed, and nothing else: a run folder also holds the triggers and the key of their commitment.
RESULTS = ("run.json", METRICS, "summary.json", "energy.json", "margin.json", "tsne.json", "di.json", "eef.json")
# the checkpoints that a run is used by, and the one from which it goes on
WEIGHTS = tuple(f"checkpoint_{name}{twin}.pt" for name in ("nat_best", "latest") for twin in ("", "_clean"))
# Figure 5 is the picture of a source's triggers
TABLE_FILES = tuple(f"{name}.{end}" for name in (*TABLES, *FIGURES) for end in ("md", "json", "png")
                    if (name, end) != ("figure5", "png"))


def check_archive(path: Path) -> None:
    """Refuse an archive that cannot be written for want of its folder, before hours of runs. Makes nothing."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        why = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise Refusal(f"--archive {path}: {why}; name a file in a folder that is there")


def write_archive(path: Path, tables: Path, runs: Path, weights: bool) -> str:
    """Pack the files in the folder `tables` and of the runs below the folder `runs`; returns a line that says what.

    With `weights` the checkpoints too; the archive is then private, because checkpoints hold the triggers. Without, it
    has at most `LIMIT` bytes: where it would be larger, metrics of finished runs are left out, the largest first.
    Raises Refusal where that is not enough.
    """
    members, folders = _members(tables, runs, weights)
    left_out = []
    if weights:
        _write_whole(path, lambda file: _pack(file, members), private=True)
    else:
        content, left_out = _fit(members)
        if len(content) > LIMIT:
            raise Refusal(f"--archive {path}: the results take {len(content) / 1e6:.2f} MB without the metrics of "
                          f"finished runs, more than {LIMIT / 1e6:g} MB; archive the runs of fewer targets, "
                          "with a --dir of their own")
        _write_whole(path, lambda file: file.write(content), private=False)
    size, count = path.stat().st_size, f"{len(folders)} run{'' if len(folders) == 1 else 's'}"
    text = f"packed the tables and {count}, {len(members) - len(left_out)} files, into {path}, "
    text += f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    if weights:
        return f"{text}; it holds weights and triggers: keep it private"
    if left_out:
        names = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if left_out[5:] else "")
        text += f"; left out, to stay below {LIMIT / 1e6:g} MB: {names}"
    return text


def _members(tables: Path, runs: Path, weights: bool) -> tuple[dict, list]:
    """({name in the archive: file}, folders of the runs). Links are not followed, since they may lead anywhere."""
    found, folders = {f"tables/{name}": tables / name for name in TABLE_FILES}, []
    for folder, below, names in os.walk(runs, onerror=_raise) if runs.exists() else ():
        below.sort()
        if "run.json" not in names:
            continue
        folder = Path(folder)
        folders.append(folder)
        place = Path("runs", folder.relative_to(runs)).as_posix()
        found |= {f"{place}/{name}": folder / name for name in RESULTS}
        if weights:
            found |= {f"{place}/checkpoints/{name}": folder / "checkpoints" / name for name in WEIGHTS}
    found = {name: path for name, path in sorted(found.items()) if path.is_file() and not path.is_symlink()}
    return found, folders


def _raise(error):
    raise error


def _fit(members: dict) -> tuple[bytes, list[str]]:
    """(archive, members that were left out): as few metrics of finished runs as the limit asks for."""
    finished = [name for name in members if name.endswith(f"/{METRICS}")
                and name.replace(METRICS, "summary.json") in members]
    finished.sort(key=lambda name: (-members[name].stat().st_size, name))
    without = lambda count: _packed({n: p for n, p in members.items() if n not in finished[:count]})
    content = without(0)
    if len(content) <= LIMIT:
        return content, []
    fewest, enough = 1, len(finished)  # halve the interval, since packing takes long
    while fewest < enough:
        middle = (fewest + enough) // 2
        fewest, enough = (fewest, middle) if len(without(middle)) <= LIMIT else (middle + 1, enough)
    return without(enough), finished[:enough]


def _packed(members: dict) -> bytes:
    buffer = io.BytesIO()
    _pack(buffer, members)
    return buffer.getvalue()


def _pack(file, members: dict) -> None:
    """Write the members as .tar.gz into an open file. JSON names this project's files by relative paths there."""
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, path in members.items():
            with open(path, "rb") as content:
                about = tarfile.TarInfo(name)
                about.mode = 0o600 if name.endswith(".pt") else 0o644
                if name.endswith(".json"):
                    content = io.BytesIO(content.read().replace(f'"{ROOT}/'.encode(), b'"'))
                about.size = content.seek(0, os.SEEK_END)
                content.seek(0)
                archive.addfile(about, content)


def _write_whole(path: Path, write, private: bool) -> None:
    """Write a file whole or not at all; `write` gets it open. With `private` only the file's owner may read it.

    As `utils.system.files.write_atomically`, but without all of the file in memory, and without torch.
    """
    partial = path.with_name(f".{path.name}.partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()  # an existing file would keep its mode
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
