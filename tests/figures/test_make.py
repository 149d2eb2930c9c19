"""`figures.make`: what it refuses, and that it resumes where it was stopped. The runs are real."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from commands import refused_make
from started_make import BENIGN, MARGIN, in_the_middle, start, status_of, written

from figures import make
from figures.cells import steps_of_target
from figures.runs import RunCommands, RunStep
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_two_makes_are_equal_and_an_interrupted_and_killed_make_resumes(tiny, whole, tmp_path):
    hurt = tmp_path / "hurt"
    assert (whole / "out").read_text().count("$ python") == 2
    assert {"table3.md", "table3.json"} == set(written(whole))
    cell = next(c for c in json.loads(written(whole)["table3.json"])["cells"] if c["row"] == "margin")
    benign = json.loads((whole / MARGIN / "summary.json").read_text())["rows"][-1]
    assert benign["model"].startswith("benign") and cell["values"] == [round(100 * benign["trigger_hits"] / 8, 6)]

    shutil.copytree(whole / BENIGN, hurt / BENIGN)  # a finished run is not repeated
    child = start(hurt)
    in_the_middle(child, hurt / MARGIN, 1)
    os.kill(child, signal.SIGINT)
    assert status_of(child) == 130
    said = (hurt / "err").read_text()
    assert said.count("\n") == 1 and "the same command" in said

    child = start(hurt)
    in_the_middle(child, hurt / MARGIN, 2)
    for number in (int((hurt / "script").read_text()), child):
        os.kill(number, signal.SIGKILL)
    assert status_of(child) in (-signal.SIGKILL, 2)  # 2: it still had time to report that its script was killed

    assert status_of(start(hurt)) == 0
    assert (hurt / "out").read_text().count("$ python") == 1
    log = (hurt / MARGIN / "output.log").read_text()
    assert log.count("continuing in epoch") == 2
    assert written(hurt) == written(whole)
    assert status_of(start(hurt)) == 0 and "$ python" not in (hurt / "out").read_text()
    assert written(hurt) == written(whole)

    # a report from before T1p is made anew from the checkpoints, without training
    summary = hurt / MARGIN / "summary.json"
    old = json.loads(summary.read_text())
    del old["log10_p"]["T1p"]
    summary.write_text(json.dumps(old))
    assert status_of(start(hurt)) == 0 and (hurt / "out").read_text().count("$ python") == 1
    assert json.loads(summary.read_text()) == json.loads((whole / MARGIN / "summary.json").read_text())
    assert (hurt / MARGIN / "output.log").read_text().count("continuing in epoch") == 2


@pytest.mark.skipif(not shutil.which("timeout"), reason="there is no timeout of coreutils")
def test_a_limit_of_time_saves_and_the_same_command_goes_on_to_the_tables_of_an_unbroken_make(tiny, whole, tmp_path):
    hurt, limit = tmp_path / "hurt", ("timeout", "--signal=TERM", "1h")
    shutil.copytree(whole / BENIGN, hurt / BENIGN)
    child = start(hurt, *limit)
    in_the_middle(child, hurt / MARGIN, 1)
    os.kill(child, signal.SIGALRM)  # to timeout, whose time is up by its clock's alarm
    assert status_of(child) == 124
    said = (hurt / "err").read_text()
    assert said.count("\n") == 1 and "SIGTERM: saved in epoch" in said and "the same command" in said
    assert not (hurt / MARGIN / "summary.json").exists() and not (hurt / "out.d").exists()
    assert status_of(start(hurt, *limit)) == 0
    assert (hurt / MARGIN / "output.log").read_text().count("continuing in epoch") == 1
    assert written(hurt) == written(whole)


def test_a_script_is_asked_to_end_once_although_timeout_sends_its_signal_twice(tmp_path):
    (tmp_path / "slow.py").write_text("""import signal, sys, time
from pathlib import Path
def save(signum, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(0.3)
    Path("run/saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path("run/begun").touch()
time.sleep(600)""")
    Path("run").mkdir()

    def send_twice():
        while not Path("run/begun").exists():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)  # a second handler is called, and the first signal has arrived

    thread = threading.Thread(target=send_twice, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as end:
        make.run_steps([RunStep(f"python {tmp_path / 'slow.py'}", Path("run/slow.json"))])
    thread.join(10)
    assert end.value.code == 143 and Path("run/saved").exists()


def test_a_failed_script_says_why_and_make_names_it(tiny, capfd):
    foreign = Path(BENIGN, "checkpoints/checkpoint_nat_best.pt")
    foreign.parent.mkdir(parents=True)
    foreign.write_text("")
    why, which = refused_make(capfd, "table3", "--profile", "tiny", "--out", "out").splitlines()
    assert "train.py: error: " in why and "checkpoints of another program" in why
    first, _ = steps_of_target("table3", RunCommands("tiny", Path("experiments/tiny")))
    assert "with status 2" in which and which.endswith(first.command)
    assert not Path("out").exists()


def test_bad_flags_of_make_are_refused_before_any_run(tmp_path, capfd):
    Path("file").write_text("")
    for flags, words in (
        (("tabel2",), ["tabel2", "table2"]),
        (("table2", "--profile", "tiny"), ["tiny", "small"]),
        (("table2", "--out", "file/here"), ["--out file/here", "takes no files"]),
        (("table2", "-d", "file"), ["--dir file", "Not a directory"]),
        (("table2", "--no-run", "--out", "file"), ["--out file", "takes no files"]),
        (("table2", "--profile", "small"), ["data/cifar10-jpeg", "train/<class>/", "--profile smoke"]),
    ):
        said = refused_make(capfd, *flags)
        assert said.count("\n") == 1 and all(word in said for word in words), said
    if os.path.isdir("/sys/kernel"):  # where not even root may make a folder
        assert "--out /sys/kernel" in refused_make(capfd, "table2", "--out", "/sys/kernel")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_inconclusive_claim_is_a_result_and_a_step_without_its_file_is_refused(tmp_path, capfd):
    def step(name, code):
        (tmp_path / f"{name}.py").write_text(f"import sys\nfrom pathlib import Path\n{code}\n")
        return RunStep(f"python {tmp_path / name}.py", Path(f"run/{name}.json"))

    Path("run").mkdir()
    make.run_steps([step("inconclusive", "Path('run/inconclusive.json').write_text('{}'); sys.exit(1)")])
    for name, code, status in (("crash", "sys.exit(1)", 1), ("idle", "", 0)):
        with pytest.raises(Refusal, match=f"with status {status}, without run/{name}.json") as refusal:
            make.run_steps([step(name, code)])
        assert str(refusal.value).endswith(f"{name}.py")
    with pytest.raises(Refusal, match="by signal 9"):
        make.run_steps([step("killed", "import os; os.kill(os.getpid(), 9)")])
    assert capfd.readouterr().out.count("$ python") == 4
