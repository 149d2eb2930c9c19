"""How long the runs of a plan take, estimated from ten measured steps of each kind of run.

The steps are measured by `figures.paper.ten_steps` in one process of its own: this one then holds no GPU memory, and
torch is started once.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

from figures.paper.commands import RunStep
from figures.paper.start import script_environment

EVALUATION = 0.1  # of the time of a run's steps: evaluations and checkpoints after each epoch and at the end
START_UP = 2  # times the start of the measuring process: the start of a run, which also loads data


class RunEstimate(NamedTuple):
    """Seconds of a step, steps of an epoch and epochs of a run; seconds that every start of it takes in addition."""

    step: float
    steps: int
    epochs: int
    start_up: float

    def remaining(self, step: RunStep) -> float:
        """The seconds that are left of the run in the step's folder."""
        rows = step.folder / "metrics.jsonl"  # a row for each epoch that is done
        done = len(rows.read_bytes().splitlines()) if rows.exists() else 0
        return self.start_up + (1 + EVALUATION) * self.step * self.steps * max(self.epochs - done, 0)


class Estimates(NamedTuple):
    """{step: `RunEstimate`} where there is one, the seconds that a run's start takes, and sentences on what failed."""

    runs: dict
    start_up: float
    notes: list

    def remaining(self, step: RunStep) -> float | None:
        """The seconds that a step still takes, None where that is unknown."""
        if step.report_due:
            return self.start_up
        return self.runs[step].remaining(step) if step in self.runs else None


def measure_estimates(steps: list[RunStep], limit: float) -> Estimates:
    """Estimates for those of `steps` that are trainings; measuring ends after `limit` seconds, with what it has."""
    if not steps:
        return Estimates({}, 0.0, [])
    began, found, notes = time.monotonic(), {"runs": [], "kinds": {}, "start_up": None}, []
    with tempfile.TemporaryFile("w+") as commands, tempfile.TemporaryFile("w+") as errors:
        json.dump([step.command for step in steps], commands)
        commands.seek(0)
        process = subprocess.Popen([sys.executable, "-m", "figures.paper.ten_steps"], stdin=commands, text=True,
                                   stdout=subprocess.PIPE, stderr=errors, env=script_environment(),
                                   start_new_session=True)
        late = threading.Event()

        def end():
            late.set()
            process.kill()

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            answered = _read_answers(process.stdout, began, found, notes)
            status = 0 if answered else process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()
            process.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if late.is_set() and not answered:
        notes.append(f"measuring was ended after {limit:.0f} s: what had not been measured is unknown")
    elif status:
        notes.append(f"measuring ended with status {status}: {said[-1][:200] if said else 'it said nothing'}")
    start_up = found["start_up"] or START_UP * (time.monotonic() - began)
    known = {
        step: RunEstimate(found["kinds"][run["kind"]], run["steps"], run["epochs"], start_up)
        for step, run in zip(steps, found["runs"]) if run.get("kind") in found["kinds"]
    }
    return Estimates(known, start_up, notes)


def _read_answers(lines, began: float, found: dict, notes: list) -> bool:
    """Fill `found` and `notes` with the answers of the measuring process, as they come; whether all have come."""
    from tqdm import tqdm

    bar, missing = None, None  # the kinds that are not measured yet
    try:
        while missing != 0 and (line := lines.readline()):
            answer = json.loads(line)
            if "ready" in answer:
                found["start_up"] = START_UP * (time.monotonic() - began)
            elif "runs" in answer:
                found["runs"], missing = answer["runs"], answer["kinds"]
                bar = tqdm(total=answer["kinds"], desc="ten steps of each kind of run", disable=None, leave=False)
            else:
                bar.update()
                missing -= 1
                if "error" in answer:
                    notes.append(f"ten steps failed: {answer['error']}: the runs of that kind are unknown")
                else:
                    found["kinds"][answer["kind"]] = answer["seconds"]
    finally:
        if bar is not None:
            bar.close()
    return missing == 0
