"""`figures.make table3 --profile tiny` in a process of its own, which a test can stop.

As a program, `python started_make.py FLAG ...` is `python -m figures.make` with that profile too.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from figures import make
from figures.cells import WATERMARKS
from figures.runs import PROFILES, ROOT

TINY = PROFILES["smoke"]._replace(flags="--width 4 --train-size 128 --batch-size 64 -ep 8 --device cpu", m=8)
BENIGN, MARGIN = (f"experiments/tiny/digits_res18_{kind}_8_s0" for kind in ("none", "margin"))


def set_tiny(monkeypatch) -> None:
    """Add the profile `tiny`, and take the rivals out of the tables."""
    monkeypatch.setitem(PROFILES, "tiny", TINY)
    monkeypatch.setattr("figures.cells.WATERMARKS", {"margin": WATERMARKS["margin"]})


def start(folder, *words) -> int:
    """Fork a `figures.make table3 --profile tiny` in `folder`; returns its process id.

    It writes what it prints to `out` and `err`, and the process id of its script to `script`. With `words`, as
    "timeout 25m", it is started by them as a program, and writes no `script`.
    """
    folder.mkdir(exist_ok=True, parents=True)
    child = os.fork()
    if child:
        return child
    status = 77
    try:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)
        flags = ["table3", "--profile", "tiny", "--out", "out.d"]
        if words:
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execvp(words[0], [*words, sys.executable, __file__, *flags])
        real = subprocess.Popen

        def noted(*args, **kwargs):
            process = real(*args, **kwargs)
            Path("script").write_text(str(process.pid))
            return process

        subprocess.Popen = noted
        sys.argv = ["make.py"]
        make.main(flags)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        os._exit(status)


def status_of(child) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_the_middle(child, run, rows: int) -> None:
    """Wait until `run` has written so many rows, before it ends."""
    path, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while len(path.read_text().splitlines() if path.exists() else []) < rows:
        assert os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
        time.sleep(0.005)
    assert not (run / "summary.json").exists()


def written(folder) -> dict:
    return {p.name: p.read_bytes() for p in (folder / "out.d/tiny").iterdir()}


if __name__ == "__main__":
    set_tiny(pytest.MonkeyPatch())
    make.main(sys.argv[1:])
