"""Starts the command of a step in a process of its own and waits for it, or stops it when its time is up."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from figures.paper.commands import RunStep
from utils.system.refusals import Interrupted, Refusal

ROOT = Path(__file__).resolve().parents[2]
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 120  # seconds for a step and a checkpoint after the time is up; a script that takes longer hangs
LOOK_EVERY = 0.1  # seconds between two looks at the time that is left


def run(step: RunStep, left=None) -> bool:
    """Run a step unless it is complete; a step that was interrupted continues where it was.

    left  a function that gives the seconds that the step may still take; without it there is no end

    Returns whether it is complete: False where its time was up and it was stopped. Whether it succeeded is decided by
    the file at its end, not by its exit status, because utils.verify exits with 1 where a claim does not hold. Raises
    Refusal where that file is missing.

    A signal that stops this process is passed on as SIGTERM; the script then saves, says so and exits. Where it was
    stopped before it could say so, Interrupted is raised.
    """
    if step.complete:
        return True
    command = step.command_now
    print(f"$ {command}", flush=True)
    words = [sys.executable, *shlex.split(command)[1:]]
    if words[1].endswith(".py"):
        words[1] = str(ROOT / words[1])
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    received, expired = [], []  # signals to this process; whether the time was up, as a list that `stop` can see

    process = None

    def stop(signum, frame):
        # a script that was asked to end when its time was up is saving
        if process is not None and (not expired or received):
            process.terminate()
        received.append(signum)

    stops = [s for s in STOPS if signal.getsignal(s) != signal.SIG_IGN]
    old = {s: signal.signal(s, stop) for s in stops}
    try:
        # In its own session the script does not also get a terminal's Ctrl-C; a second signal would end it unsaved.
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=script_environment(), start_new_session=True)
        if received:
            process.terminate()
        status = _wait(process, left, received, expired)
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
    if received and status > 0:
        sys.exit(128 + received[0])
    if received:
        raise Interrupted(received[0], "interrupted; what was saved is intact, and the same command goes on")
    if not step.complete:
        if expired and status in (128 + signal.SIGTERM, -signal.SIGTERM):
            return False
        missing = "the rows of the benign model" if step.finished else step.done
        how = f"by signal {-status}" if status < 0 else f"with status {status}, without {missing}"
        raise Refusal(f"this command ended {how}, see above; mend that, and the same figures.make goes on: {command}")
    return True


def _wait(process, left, received: list, expired: list) -> int:
    """The exit status of the process once it has ended.

    When its time is up, True is added to `expired` and it is asked to end; it then has `GRACE` seconds for saving.
    """
    while left is not None and not received:
        if left() <= 0:
            expired.append(True)
            process.terminate()
            try:
                return process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=LOOK_EVERY)
    return process.wait()


def script_environment() -> dict:
    """The environment in which scripts are started: they find this project from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
