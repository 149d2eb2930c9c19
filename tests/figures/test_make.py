"""`figures.make`: what it refuses, and that it resumes where it was stopped. The runs are real."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import started_make
from commands import ROOT, refused
from small_runs import skip_fsync_git_and_pictures
from started_make import BENIGN, MARGIN, run_here, set_tiny

from figures import make
from figures.cells import steps_of_target
from figures.runs import PROFILES, RunStep
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("elsewhere")
TABLE3 = ["table3", "--profile", "tiny", "--out", "out.d"]


def start(*command) -> subprocess.Popen:
    """A command in a process of its own, which writes what it prints into the files out and err."""
    with open("out", "w") as out, open("err", "w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err,
                                env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})


def in_the_middle(process, rows: int) -> None:
    """Wait until the margin run has written so many rows, before it ends."""
    path, deadline = Path(MARGIN, "metrics.jsonl"), time.monotonic() + 300
    while len(path.read_text().splitlines() if path.exists() else []) < rows:
        assert process.poll() is None and time.monotonic() < deadline, Path("err").read_text()
        time.sleep(0.005)
    assert not Path(MARGIN, "summary.json").exists()


def written() -> dict:
    """The files, but for where the runs were made, which those of `run_here` do not say."""
    return {path.name: re.sub(rb'(?<="places": \[)[^]]*|Made on: [^\n]*', b"", path.read_bytes())
            for path in Path("out.d/tiny").iterdir()}


@pytest.mark.skipif(not shutil.which("timeout"), reason="there is no timeout of coreutils")
def test_a_make_whose_time_is_up_and_a_killed_one_go_on_to_the_tables_of_an_unbroken_one(tmp_path, monkeypatch, capfd):
    set_tiny(monkeypatch)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    for folder in (whole, hurt):
        folder.mkdir()
    monkeypatch.chdir(whole)
    with skip_fsync_git_and_pictures():
        for step in (steps := steps_of_target("table3", PROFILES["tiny"], Path("experiments/tiny"))):
            run_here(step)
    make.main(TABLE3)
    unbroken = written()
    assert {"table3.md", "table3.json"} == set(unbroken) and "$ python" not in capfd.readouterr().out
    cell = next(cell for cell in json.loads(unbroken["table3.json"])["cells"] if cell["row"] == "margin")
    benign = json.loads(Path(MARGIN, "summary.json").read_text())["rows"][-1]
    assert benign["model"].startswith("benign") and cell["values"] == [round(100 * benign["trigger_hits"] / 8, 6)]

    monkeypatch.chdir(hurt)
    shutil.copytree(whole / BENIGN, BENIGN)  # a finished run is not repeated
    process = start("timeout", "--signal=TERM", "1h", sys.executable, started_make.__file__, *TABLE3)
    in_the_middle(process, 1)
    process.send_signal(signal.SIGALRM)  # to timeout, whose time is up by its clock's alarm
    assert process.wait() == 124
    said = Path("err").read_text()
    assert said.count("\n") == 1 and "SIGTERM: saved in epoch" in said and "the same command" in said
    assert not Path(MARGIN, "summary.json").exists() and not Path("out.d").exists()

    process = start(sys.executable, *shlex.split(steps[1].command.replace("python ", f"{ROOT}/", 1)))
    in_the_middle(process, 2)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    capfd.readouterr()
    make.main(TABLE3)
    assert capfd.readouterr().out.count("$ python") == 1
    assert Path(MARGIN, "output.log").read_text().count("continuing in epoch") == 2
    assert written() == unbroken


def test_scripts_are_asked_to_end_once_although_timeout_sends_its_signal_twice(tmp_path):
    (tmp_path / "slow.py").write_text("""import signal, sys, time
from pathlib import Path
def save(signum, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(0.3)
    Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "begun").touch()
time.sleep(600)""")
    for run in ("a", "b"):
        Path(run).mkdir()

    def send_twice():
        while not (Path("a/begun").exists() and Path("b/begun").exists()):  # both at once
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)  # a second handler is called, and the first signal has arrived

    thread = threading.Thread(target=send_twice, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as end:
        slow = f"python {tmp_path / 'slow.py'}"
        make.run_steps([RunStep(f"{slow} {run}", Path(run, "end.json")) for run in ("a", "b", "c")], jobs=2)
    thread.join(10)
    assert end.value.code == 143 and Path("a/saved").exists() and Path("b/saved").exists() and not Path("c").exists()


def test_an_inconclusive_claim_is_a_result_and_a_step_without_its_file_is_refused(tmp_path, capfd):
    def step(name, code):
        (tmp_path / f"{name}.py").write_text(f"import os, sys\nfrom pathlib import Path\n{code}\n")
        return RunStep(f"python {tmp_path / name}.py", Path(f"run/{name}.json"))

    Path("run").mkdir()
    make.run_steps([step("inconclusive", "Path('run/inconclusive.json').write_text('{}'); sys.exit(1)")])
    for name, code, status in (("crash", "sys.exit(1)", 1), ("idle", "", 0)):
        with pytest.raises(Refusal, match=f"with status {status}, without run/{name}.json.*{name}.py$"):
            make.run_steps([step(name, code)])
    killed, other = step("killed", "os.kill(os.getpid(), 9)"), step("other", "Path('run/other.json').write_text('{}')")
    capfd.readouterr()
    with pytest.raises(Refusal, match="by signal 9"):
        make.run_steps([killed, step("copy", "")._replace(needs=(killed,)), other], keep_going=True)
    assert capfd.readouterr().out.count("$ python") == 2 and other.result() == {}


def test_bad_flags_of_make_are_refused_before_any_run(tmp_path):
    Path("file").write_text("")
    for flags, words in (
        (("tabel2",), ["tabel2", "table2"]), (("table2", "--profile", "tiny"), ["tiny", "small"]),
        (("table2", "-d", "file"), ["--dir file", "Not a directory"]),
        (("table2", "--no-run", "--out", "file"), ["--out file", "takes no files"]),
        (("table2", "--profile", "small"), ["data/cifar10-jpeg", "train/<class>/", "--profile smoke"]),
        (("table2", "--archive", "no/where.tgz"), ["--archive no/where.tgz", "there is no folder no"]),
        (("table2", "--archive", "a.tgz", "--list"), ["--archive with --list"]),
    ):
        said = refused("figures.make", *flags)
        assert said.count("\n") == 1 and all(word in said for word in words), said
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
