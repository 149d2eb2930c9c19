"""A run is a folder that explains itself and can be continued: settings, log, rows, checkpoints, summary."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from utils.runs.checkpoints import load_checkpoint, save_checkpoint
from utils.system.files import lock, open_no_link, read_json, refuse_links, write_atomically, write_json
from utils.system.machine import chief_first, describe_process, is_chief, restart_count
from utils.system.refusals import Refusal

OWN_FILES = ("run.json", "metrics.jsonl", "output.log", "summary.json", "trigger.png", "triggers.pt", "commitment.json",
             "key.json", "report.html")
# settings that change where and how a run is computed, not what it computes
NOT_COMPARED = ("dir", "data_dir", "data_dir_source", "device", "overwrite", "benign", "skip_bad_images", "graph",
                "prepared")


class RunFolder:
    """The run folder `path`, locked while this process runs.

    Nothing is made before `open`. A run with the same settings is continued, one with other settings is refused;
    `overwrite_hint` names the way out in that refusal.
    """

    def __init__(self, path, settings: dict, overwrite_hint: str):
        self.path, self.checkpoints, self.hint = Path(path), Path(path) / "checkpoints", overwrite_hint
        self.settings = {k: v for k, v in settings.items() if k not in NOT_COMPARED}

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that holds a run with other settings, or symbolic links. Makes nothing."""
        refuse_links(self.path)
        if overwrite:
            return
        there = read_json(self.path / "run.json")
        if there is None and any(self.checkpoints.glob("checkpoint_*.pt")):
            raise Refusal(f"{self.path} holds checkpoints of another program: pass {self.hint} or --overwrite")
        if there is None:
            return
        old = there.get("settings")
        if not isinstance(old, dict):
            raise Refusal(f"{self.path / 'run.json'} is damaged: restore it, or pass --overwrite to begin anew")
        # a flag that did not exist when the run was made counts as off
        if differ := [k for k, v in self.settings.items() if old.get(k) != v and (k in old or v)]:
            key = differ[0]
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
        with chief_first():
            if is_chief():
                self._open(device, overwrite)
        return self

    def _open(self, device, overwrite):
        refuse_links(self.path)  # `check` may not have been called
        # private, because anybody can draw the triggers again from the data and the seed in the settings
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)  # it may have existed before, open to others
        self.checkpoints.mkdir(exist_ok=True)
        self._lock = open(self.path / ".lock", "w", opener=open_no_link)
        try:
            is_locked = lock(self._lock)
        except BlockingIOError as error:
            raise Refusal(f"{self.path} is in use by another process; wait for it or pass {self.hint}") from error
        if overwrite:
            # what marks a run as finished or lets it continue is removed first, the settings last, so that a kill
            # in between leaves a run that begins again
            first = ("summary.json", "checkpoints/checkpoint_previous.pt", "checkpoints/checkpoint_latest.pt")
            for old in [*map(self.path.joinpath, first), *self.checkpoints.glob("checkpoint_*.pt"),
                        *map(self.path.joinpath, reversed(OWN_FILES))]:
                old.unlink(missing_ok=True)
        for partial in (*self.path.glob(".*.partial"), *self.checkpoints.glob(".*.partial")):
            partial.unlink()
        if not (self.path / "run.json").exists():
            self.write_json("run.json", {"settings": self.settings, **describe_process(device)})
        self.log(" ".join(sys.argv))
        if not is_locked:
            self.log(f"the file system of {self.path} has no locks: let no other process write this run meanwhile")
        if self.finished:  # it is only reported again
            now, then = (of.get("git_commit") for of in (describe_process(device), read_json(self.path / "run.json")))
            if then and now and then != now:
                self.log(f"{self.path} was trained by commit {then}, this is {now}: its figures are those of that "
                         f"program; pass --overwrite to train anew")

    @property
    def finished(self) -> bool:
        """Whether the folder holds the summary of a finished run."""
        return (self.path / "summary.json").exists()

    def log(self, text: str) -> None:
        """One entry on the screen and, with the time, in `output.log`."""
        if not is_chief():
            return
        print(text, flush=True)
        with open(self.path / "output.log", "a", encoding="utf-8", errors="backslashreplace",
                  opener=open_no_link) as file:
            stamp = time.strftime("%Y/%m/%d %H:%M:%S")
            file.writelines(f"[{stamp}] {line}\n" for line in text.splitlines())

    def log_all(self, texts: list[str]) -> None:
        """One entry for each text."""
        for text in texts:
            self.log(text)

    def rows(self) -> list[dict]:
        """The rows of `metrics.jsonl`, one an epoch."""
        path = self.path / "metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        except ValueError as error:
            raise Refusal(f"{path} is damaged: restore it, or pass --overwrite") from error

    def write_rows(self, rows: list[dict]) -> None:
        """Replace `metrics.jsonl`."""
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write_json(self, name: str, content: dict, private: bool = False) -> None:
        """Write `content` as JSON under `name`."""
        write_json(self.path / name, content, private)

    def save(self, name: str, checkpoint: dict) -> None:
        """Write `checkpoints/checkpoint_<name>.pt`, plain tensors, numbers and strings only.

        The `latest` before this one is kept as `previous`, in case the disk damages the file.
        """
        path, previous = (self.checkpoints / f"checkpoint_{which}.pt" for which in (name, "previous"))
        if name == "latest" and path.exists() and is_chief():
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
