"""Run the scripts as a user does: in processes of their own, or their `main` in this one."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def finished(*command, status=0, timeout=600, cwd=ROOT):
    """Run a command in a process of its own; returns the finished process after checking its exit status."""
    command = list(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout)
    assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


Done = namedtuple("Done", "status out err")


def call(script, *flags) -> Done:
    """What a script's main, run in this process, printed, and its exit status, 1 where a claim does not hold."""
    main, out, err = importlib.import_module(script).main, io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [f"{script}.py", *map(str, flags)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main() or 0
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
    return Done(status, out.getvalue(), err.getvalue())


verify = partial(call, "utils.verify")


def good(script, *flags) -> str:
    """Run a script's main, which must succeed, or judge that a claim does not hold; returns what it printed."""
    done = call(script, *flags)
    assert done.status in (0, 1), done.err
    return done.out


def refused(script, *flags) -> str:
    """Run a script's main, which must refuse its flags in one sentence; returns the sentence."""
    done = call(script, *flags)
    assert done.status == 2, (done.status, done.out, done.err)
    assert done.err.startswith(f"{script}.py: error: ") and done.err[:-1].isprintable() and done.out == ""
    return done.err


def summary(folder) -> dict:
    """The summary of a finished run."""
    return json.loads((folder / "summary.json").read_text())


def rows_of(folder) -> list[dict]:
    """The figures of each epoch of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tree(folder) -> set:
    """Every path below a folder."""
    return set(folder.rglob("*"))
