"""A run is a folder that explains itself and can be continued: settings, log, rows, checkpoints, summary.

And the table with which every script ends.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
from pathlib import Path

import torch

from utils.runs.checkpoints import load_checkpoint, save_checkpoint
from utils.system.files import close_to_others, open_no_link, read_json, refuse_links, write_atomically, write_json
from utils.system.machine import describe_process, is_rank_0, rank_0_first, restart_count
from utils.system.refusals import Refusal

OWN_FILES = ("run.json", "metrics.jsonl", "output.log", "summary.json", "trigger.png", "triggers.pt", "commitment.json",
             "key.json", "report.html", "energy.json", "margin.json", "tsne.json", "traces.json", "recalibrated.json",
             "di.json", "eef.json")
# settings that change where and how a run is computed, not what it computes
NOT_COMPARED = ("dir", "data_dir", "data_dir_source", "device", "overwrite", "benign", "skip_bad_images", "graph",
                "prepared")
HASHED = {"init": "init_sha256", "label_model": "label_model_sha256"}  # files may lie elsewhere: their hash counts
CHANGED = {"data_sha256": "the images of --data-dir", "data_source_sha256": "the thief's images",
           "source_sha256": "the source", "on_sha256": "the copy that --on names", "init_sha256": "the file of --init",
           "label_model_sha256": "the label models", "classes_sha256": "the class folders of --data-dir"}
TESTS = {"T1": "T1", "T1p": "T1p", "T1_conservative": "T1 cons.", "T3": "T3", "p_subset": "p_subset"}
COLUMNS = ("model", "test %", "triggers", *TESTS.values())
LARGEST = 1e30  # of a number that is written or drawn


class RunFolder:
    """The run folder `path`, locked while this process runs.

    Nothing is made before `open`. A run with the same settings is continued, one with other settings is refused;
    `overwrite_hint` names the way out in that refusal.
    """

    def __init__(self, path, settings: dict, overwrite_hint: str):
        self.path, self.checkpoints, self.hint = Path(path), Path(path) / "checkpoints", overwrite_hint
        self.settings = {k: v for k, v in settings.items() if k not in NOT_COMPARED}

    def check(self, overwrite: bool, needed: dict | None = None) -> None:
        """Refuse a folder that holds a run with other settings, or symbolic links. Makes nothing.

        needed  {flag: path or paths} from which the run starts: `overwrite` would remove them
        """
        refuse_links(self.path)
        for flag, named in (needed or {}).items():
            for path in named if isinstance(named, list) else filter(None, [named]):
                if Path(path).resolve().is_relative_to(self.path.resolve()):
                    raise Refusal(f"{flag} {path} lies in the folder that this run writes: pass {self.hint}")
        if overwrite:
            return
        try:
            there = read_json(self.path / "run.json")
        except Refusal as error:
            raise Refusal(f"{error}, or pass --overwrite to begin anew") from error
        if there is None and any(self.checkpoints.glob("checkpoint_*.pt")):
            raise Refusal(f"{self.path} holds checkpoints without a run.json, as of another program: restore that, or "
                          f"pass {self.hint} or --overwrite")
        if there is None:
            return
        old = there.get("settings")
        if not isinstance(old, dict):
            raise Refusal(f"{self.path / 'run.json'} is damaged: restore it, or pass --overwrite to begin anew")
        # a flag that did not exist when the run was made counts as off; class names were once not recorded
        other = lambda k, v: bool(old.get(k)) != bool(v) if HASHED.get(k) in old else old.get(k) != v
        if differ := [k for k, v in self.settings.items() if other(k, v) and (k in old or v and k != "classes_sha256")]:
            key = differ[0]
            if key in CHANGED:
                what = "names" if key == "classes_sha256" else "contents"
                raise Refusal(f"{self.path} was made when {CHANGED[key]} had other {what}: restore them, or pass "
                              f"{self.hint} or --overwrite")
            raise Refusal(f"{self.path} holds a run with other settings ({key.replace('_', '-')} was {old.get(key)!r}, "
                          f"is {self.settings[key]!r}{', ...' if differ[1:] else ''}): pass {self.hint} or --overwrite")
        self.settings = {k: v for k, v in self.settings.items() if k in old}  # those that the run was made with

    def open(self, device: torch.device, overwrite: bool) -> "RunFolder":
        """Make the folder, or continue the run in it; with `overwrite` an old run is removed first.

        After a restart by torchrun a run with the same settings is this command's own, and is continued.
        """
        if restart_count():
            with contextlib.suppress(Refusal):
                self.check(False)
                overwrite = False
        with rank_0_first():
            if is_rank_0():
                self._open(device, overwrite)
        return self

    def _open(self, device, overwrite):
        refuse_links(self.path)  # `check` may not have been called
        # private, because anybody can draw the triggers again from the data and the seed in the settings
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        warnings = close_to_others(self.path)  # it may have existed before, open to others
        self.checkpoints.mkdir(exist_ok=True)
        self._lock = open(self.path / ".lock", "w", opener=open_no_link)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refusal(f"{self.path} is in use by another process; wait for it or pass {self.hint}") from error
        except OSError:  # as on some network file systems
            warnings.append(f"the file system of {self.path} has no locks: let no other process write this run "
                            "meanwhile")
        if overwrite:
            # what marks a run as finished or lets it continue is removed first, the settings last, so that a kill
            # in between leaves a run that begins again
            first = ("summary.json", "checkpoints/checkpoint_previous.pt", "checkpoints/checkpoint_latest.pt")
            for old in [*map(self.path.joinpath, first), *self.checkpoints.glob("checkpoint_*.pt"),
                        *map(self.path.joinpath, reversed(OWN_FILES))]:
                old.unlink(missing_ok=True)
        for partial in (*self.path.glob(".*.partial"), *self.checkpoints.glob(".*.partial")):
            partial.unlink()
        process = describe_process(device)
        trained = any(self.checkpoints.glob("checkpoint_[lp]*.pt"))  # latest or previous, from which a run goes on
        if not (trained or self.finished):
            write_json(self.path / "run.json", {"settings": self.settings, **process})
        self.log(" ".join(sys.argv), *warnings)
        now, then = (of.get("git_commit") for of in (process, read_json(self.path / "run.json")))
        if trained and then and now and then != now:
            self.log(f"{self.path} was begun by commit {then}, this is {now}: its figures are not those of this "
                     "program alone; pass --overwrite to train anew")

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def log(self, *texts: str) -> None:
        """Each text on the screen and, with the time before each line, in `output.log`."""
        if not texts or not is_rank_0():
            return
        text = "\n".join(texts)
        with open(self.path / "output.log", "a", encoding="utf-8", errors="backslashreplace",
                  opener=open_no_link) as file:
            stamp = time.strftime("%Y/%m/%d %H:%M:%S")
            file.writelines(f"[{stamp}] {line}\n" for line in text.splitlines())
        print(text, flush=True)  # after the file: the reader of the output may have gone

    def rows(self) -> list[dict]:
        """The rows of `metrics.jsonl`, one an epoch."""
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_bytes().splitlines() if path.exists() else []
            return [row | {"epoch": int(row["epoch"])} for row in map(json.loads, lines)]
        except (ValueError, TypeError, KeyError) as error:
            raise Refusal(f"{path} is damaged: restore it, or remove it, which loses its rows alone") from error

    def write_rows(self, rows: list[dict]) -> None:
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def save(self, name: str, checkpoint: dict) -> None:
        """Write `checkpoints/checkpoint_<name>.pt`, plain tensors, numbers and strings only.

        The `latest` before this one is kept as `previous`, in case the disk damages the file.
        """
        path, previous = (self.checkpoints / f"checkpoint_{which}.pt" for which in (name, "previous"))
        if name == "latest" and path.exists() and is_rank_0():
            with contextlib.suppress(OSError):  # without hard links there is no `previous`
                previous.unlink(missing_ok=True)
                os.link(path, previous)
        save_checkpoint(path, checkpoint)

    def load(self, name: str) -> dict | None:
        """Read `checkpoints/checkpoint_<name>.pt`, or `previous` if `latest` is damaged; None without a file."""
        path = self.checkpoints / f"checkpoint_{name}.pt"
        previous = self.checkpoints / "checkpoint_previous.pt"
        if name == "latest" and previous.exists():
            try:
                return load_checkpoint(path)
            except Refusal as refusal:
                self.log(f"{refusal}; going on from {previous}")
                path = previous
        return load_checkpoint(path) if path.exists() else None


def finite_number(value) -> float | None:
    """A finite number of a sensible size; None for anything else that a file may say."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known and -LARGEST <= value <= LARGEST else None  # NaN is in no range


def row_cells(row: dict) -> list[str]:
    """The cells of `COLUMNS` of a row of `TriggerTests.row`: accuracy in per cent, hits k/m, log10 p.

    "-" where there is no figure. The row may be what somebody else's file says.
    """
    accuracy, p = finite_number(row.get("test_accuracy")), row.get("log10_p")
    hits, size = finite_number(row.get("trigger_hits")), finite_number(row.get("trigger_size"))
    values = [finite_number(p.get(key)) if isinstance(p, dict) else None for key in TESTS]
    return [str(row.get("model")), "-" if accuracy is None else f"{100 * accuracy:.2f}",
            "-" if None in (hits, size) else f"{hits}/{size}", *("-" if v is None else f"{v:.2f}" for v in values)]


def format_table(rows: list[dict]) -> str:
    """Rows of `TriggerTests.row` as text."""
    width = max([len(row["model"]) for row in rows] + [5])
    lines = [f"{model:<{width}}  {accuracy:>7}  {hits:>9}  " + "  ".join(f"{value:>8}" for value in p)
             for model, accuracy, hits, *p in [COLUMNS, *map(row_cells, rows)]]
    lines.append("log10 p: T1 of answers, T1p of probabilities, T3. The smaller of T1 and T1p decides: -3.30 is")
    lines.append("p = 0.001 for two tests. p_subset is for comparison with the paper only")
    return "\n".join(lines)


def finish_run(run: RunFolder, summary: dict, rows: list[dict]) -> None:
    """Print of which epoch the model is, and the table; write `summary.json`, which marks the run as finished."""
    if "chosen_epoch" in summary:
        run.log(f"the checkpoint of epoch {summary['chosen_epoch']} is reported (--select {summary['select']})")
    run.log(format_table(rows))
    write_json(run.path / "summary.json", {**summary, "rows": rows})
    run._lock.close()  # this process may report or continue it again
