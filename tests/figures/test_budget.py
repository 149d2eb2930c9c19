"""`figures.make --budget`: which runs are started in which order, and what is there at the end of the budget.

Runs are real where a checkpoint matters; elsewhere they are scripts of one line.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import refused_make
from started_make import BENIGN, MARGIN, in_the_middle, start, status_of, written

from figures import make
from figures.paper import schedule
from figures.paper.budget import Budget, budget_seconds, show_seconds
from figures.paper.commands import RunCommands, RunStep
from figures.paper.estimates import Estimates, RunEstimate
from utils.system.refusals import refuse_in_one_sentence

pytestmark = pytest.mark.usefixtures("elsewhere")


# ---- flags and time ----


def test_a_length_of_time_is_read_as_a_person_writes_it():
    good = {"90s": 90, "25m": 1500, "1h30m": 5400, "1.5h": 5400, "45": 45, "1h0m1.5s": 3601.5, "1000h": 3.6e6}
    assert {text: budget_seconds(text) for text in good} == good
    assert [show_seconds(s) for s in (12, 600, 5400)] == ["12 s", "10 min", "1.5 h"]


@pytest.mark.parametrize("text", ["soon", "", "0", "0m", "-5m", "1h30", "5 m", "1m1h", "m", "1e3", "nan", "1001h",
                                  "²h"])
def test_other_budgets_are_refused_in_one_sentence(text, tmp_path, capfd):
    said = refused_make(capfd, "table3", f"--budget={text}")
    assert said.count("\n") == 1 and "--budget" in said and "25m" in said and not list(tmp_path.iterdir())


def test_a_budget_does_not_go_without_runs(capfd):
    said = refused_make(capfd, "table3", "--budget", "25m", "--no-run")
    assert said.count("\n") == 1 and "--budget with --no-run" in said


def test_a_part_of_the_budget_is_kept_for_saving():
    now = time.monotonic()
    assert Budget(1500, now).reserve == 20 and Budget(20, now).reserve == 2
    assert 0 < Budget(1e6, now - 10).left() <= 1e6 - 30 and Budget(5, now - 10).left() < 0


def test_the_commands_are_listed_in_the_order_of_a_budget(tiny, capfd):
    make.main(["table3", "--profile", "tiny", "--budget", "1h", "--list"])
    assert [line.split("-tt ")[1].split()[0] for line in capfd.readouterr().out.splitlines()] == ["margin", "none"]
    make.main(["table3", "--profile", "tiny", "--list"])
    assert [line.split("-tt ")[1].split()[0] for line in capfd.readouterr().out.splitlines()] == ["none", "margin"]


# ---- plans of scripts of one line ----


def script(name, code, needs=()) -> RunStep:
    """A step whose command is a script with this code; `done` writes the file at its end."""
    path = Path("scripts", f"{name}.py").absolute()
    path.parent.mkdir(exist_ok=True)
    done = Path("runs", name, "summary.json")
    head = f"import sys, time\nfrom pathlib import Path\nfolder = Path({str(done.parent)!r})\n"
    head += "folder.mkdir(parents=True, exist_ok=True)\ndone = lambda: (folder / 'summary.json').write_text('{}')\n"
    path.write_text(head + code + "\n")
    return RunStep(f"python {path}", done, tuple(needs))


@pytest.fixture
def no_measuring(monkeypatch):
    """A dict {step: seconds} that takes the place of measured steps."""
    known = {}

    def given(steps, limit):
        return Estimates({s: RunEstimate(0, 0, 0, known[s]) for s in steps if s in known}, 1.0, ["a note"])

    monkeypatch.setattr(schedule, "measure_estimates", given)
    return known


def plan(*steps, seconds=600.0):
    """Start a plan within a budget as figures.make does; returns what `finish` and the writing of tables were told."""
    told = []
    begun = Budget(seconds, time.monotonic())
    refuse_in_one_sentence(make.start_within)(begun, list(steps), lambda: told.append("tables"),
                                              lambda: told.append("finish"))
    return told


def test_a_failing_script_does_not_end_the_plan(no_measuring, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make.py"])
    bad = script("bad", "sys.exit('why it fails')")
    needs_bad, good = script("needs", "done()", [bad]), script("good", "done()")
    with pytest.raises(SystemExit) as end:
        plan(bad, needs_bad, good)
    out, err = capfd.readouterr()
    assert end.value.code == 2 and good.finished and not needs_bad.folder.exists()
    assert out.count("$ python") == 2 and "1 of 3 runs are finished; the same command goes on" in out
    why, named, last = err.splitlines()
    assert why == "why it fails" and "with status 1, without runs/bad/summary.json" in named
    assert last == "make.py: error: 1 command failed, see above; mend that, and the same figures.make goes on: " \
        + bad.command


def test_a_plan_is_printed_before_its_first_run_and_tables_are_written_after_each(no_measuring, capfd):
    one, two, three = (script(name, "done()") for name in ("one", "two", "three"))
    no_measuring |= {two: 5000.0, three: 60.0}
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/run.json").write_text("{}")
    assert plan(one, two, three) == ["tables", "tables", "tables", "tables", "finish"]
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "a note" and lines[1].startswith("budget 10 min: ")
    assert [" ".join(line.split()[:4]) for line in lines[2:5]] == [
        "1 begun, unknown python", "2 about 83 min", "3 about 60 s"]
    assert lines[5:8] == [f"$ {step.command}" for step in (one, two, three)]  # two is longer than the whole budget
    assert lines[8:] == ["3 of 3 runs are finished"]


def test_what_does_not_fit_is_left_for_the_next_time(no_measuring, capfd):
    quick, slow = script("quick", "time.sleep(0.5); done()"), script("slow", "done()")
    no_measuring |= {quick: 1.0, slow: 89.9}
    plan(quick, slow, seconds=100)  # 90 s are for runs
    out = capfd.readouterr().out
    assert out.count("$ python") == 1 and not slow.folder.exists()
    assert "1 of 2 runs are finished; no other fits in the 8" in out and "the same command goes on" in out


def test_a_script_is_stopped_at_the_end_of_the_budget(no_measuring, capfd):
    endless, after = script("endless", "done_later = time.sleep(600)"), script("after", "done()")
    plan(endless, after, seconds=1)
    out = capfd.readouterr().out
    assert not after.folder.exists()
    assert f"0 of 2 runs are finished; stopped at the end of the budget: {endless.command} (it begins anew); " in out


def test_a_script_that_saves_at_the_end_of_the_budget_is_not_asked_to_end_a_second_time(no_measuring):
    code = """import signal
def save(signum, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    (folder / 'asked').touch()
    while not (folder / 'go').exists():
        time.sleep(0.01)
    (folder / 'saved').touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
time.sleep(600)"""
    slow = script("slow", code)

    def end_this_process_too():
        while not (slow.folder / "asked").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        (slow.folder / "go").touch()

    thread = threading.Thread(target=end_this_process_too, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as end:
        plan(slow, seconds=3)
    thread.join(10)
    assert end.value.code == 143 and (slow.folder / "saved").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_tables_written(signum, monkeypatch, capfd):
    idle, told = script("idle", "done()"), []
    monkeypatch.setattr(schedule, "measure_estimates", lambda steps, limit: os.kill(os.getpid(), signum))
    begun = Budget(100, time.monotonic())
    with pytest.raises(SystemExit) as end:
        refuse_in_one_sentence(make.start_within)(begun, [idle], lambda: None, lambda: told.append("finish"))
    out, err = capfd.readouterr()
    assert end.value.code == 128 + signum and told == ["finish"] and not idle.folder.exists()
    assert out == "0 of 1 runs are finished; the same command goes on\n" and err.count("\n") == 1


# ---- real runs ----


@pytest.fixture
def quick_looks(monkeypatch):
    """Looks at the clock that come often enough to stop a run of a second, and no measured steps."""
    monkeypatch.setattr("figures.paper.start.LOOK_EVERY", 0.005)
    monkeypatch.setattr(schedule, "measure_estimates", lambda steps, limit: Estimates({}, 1.0, []))


def test_a_stopped_and_an_interrupted_plan_go_on_to_the_tables_of_an_unbroken_make(
        tiny, whole, quick_looks, tmp_path, monkeypatch):
    hurt = tmp_path / "hurt"
    rows = hurt / MARGIN / "metrics.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Budget, "left", lambda self: 0.0 if rows.exists() else 1e4)  # the time is up after an epoch
        assert status_of(start(hurt, "--budget", "1h", "--archive", "a.tgz")) == 0, (hurt / "err").read_text()
    said = (hurt / "out").read_text()
    assert said.count("$ python") == 1 and "0 of 2 runs are finished; stopped at the end of the budget" in said
    assert "--benign" not in said.split("$ python")[1] and (hurt / "a.tgz").exists()
    assert (hurt / MARGIN / "run.json").exists() and not (hurt / MARGIN / "summary.json").exists()
    assert {"table3.md", "table3.json", "report.html"} == set(written(hurt))
    assert b"not run" in written(hurt)["table3.md"]

    for path in (hurt / "out.d/tiny").iterdir():
        path.unlink()
    child = start(hurt, "--budget", "1h")
    in_the_middle(child, hurt / MARGIN, len(rows.read_text().splitlines()) + 1)
    os.kill(child, signal.SIGINT)
    assert status_of(child) == 130
    assert "0 of 2 runs are finished" in (hurt / "out").read_text() and b"not run" in written(hurt)["table3.md"]
    assert (hurt / "err").read_text().count("\n") == 1

    assert status_of(start(hurt, "--budget", "1h")) == 0, (hurt / "err").read_text()
    said = (hurt / "out").read_text()
    commands = [line for line in said.splitlines() if line.startswith("$ ")]
    assert [" -tt margin " in line for line in commands] == [True, False, True]
    assert ["--benign" in line for line in commands] == [False, False, True]  # its report again, with the benign row
    assert said.endswith("2 of 2 runs are finished\n")
    assert (hurt / MARGIN / "output.log").read_text().count("continuing in epoch") == 2
    assert written(hurt) == written(whole)
    ours, theirs = (json.loads((folder / MARGIN / "summary.json").read_text()) for folder in (hurt, whole))
    assert ours == theirs and ours["rows"][-1]["model"] == f"benign {Path(BENIGN).name}"


def test_a_report_without_its_benign_row_is_made_anew_without_a_budget_too(tiny):
    runs = RunCommands("tiny", Path("runs"))
    margin, benign = runs.source(0), runs.source(0, "none")
    assert not margin.report_due and "--benign" not in margin.command_now
    report = lambda step, *models: step.done.write_text(json.dumps({"rows": [{"model": m} for m in models]}))
    for step in (margin, benign):
        step.folder.mkdir(parents=True)
    report(margin, "source margin")
    assert margin.complete and not margin.report_due
    report(benign, "benign none")
    assert margin.report_due and margin.finished and not margin.complete and margin.command_now == margin.command
    report(margin, "source margin", f"benign {benign.folder.name}")
    assert margin.complete and benign.complete
