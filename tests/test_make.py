"""`figures.make`: what it needs and writes, and that it goes on where it was stopped. Runs are real; only some writing
starts from summaries set down by hand."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from figures import make
from figures.paper.commands import RunCommands, RunStep
from figures.paper.numbers import ACC, MODELS, NUMBERS, TRIG, P
from figures.paper.profiles import PROFILES
from figures.paper.steps import steps_of_target
from figures.paper.table_cells import FIGURES, TABLES, WATERMARKS, table_cells
from utils.system.refusals import Refusal
from utils.verify import parse

TINY = PROFILES["smoke"]._replace(flags="--width 4 --train-size 128 --batch-size 64 -ep 5 --device cpu", m=8)
BENIGN, MARGIN = (f"experiments/tiny/digits_res18_{kind}_8_s0" for kind in ("none", "margin"))
SUMMARY = {"test_accuracy": 0.5, "trigger_hits": 3, "trigger_size": 10, "log10_p": {"T1": -4.0}, "rows": []}
VERDICT = {
    "di": {"source": {"log10_p": -3.0}, "suspects": [{"log10_p": -2.5}, {"log10_p": -2.0}, {"log10_p": -1.5}]},
    "eef": {"suspects": [{"log10_p": -7.0}, {"log10_p": -4.5}, {"log10_p": -4.0}, {"log10_p": -0.5}]},
}


@pytest.fixture
def tiny(monkeypatch):
    """The profile `tiny`, without the rivals: table3 then has two runs."""
    monkeypatch.setitem(PROFILES, "tiny", TINY)
    monkeypatch.setattr("figures.paper.table_cells.WATERMARKS", {"margin": WATERMARKS["margin"]})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs and data have relative names: the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)


def start(folder) -> int:
    """The process id of a `figures.make table3 --profile tiny` in `folder`, where `script` names its script's."""
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
        real = subprocess.Popen

        def noted(*args, **kwargs):
            process = real(*args, **kwargs)
            Path("script").write_text(str(process.pid))
            return process

        subprocess.Popen = noted
        sys.argv = ["make.py"]
        make.main(["table3", "--profile", "tiny", "--out", "out.d"])
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        os._exit(status)


def status_of(child) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_the_middle(child, run, rows: int) -> None:
    """Wait until `run` has written so many rows; it must not have ended then."""
    path, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while len(path.read_text().splitlines() if path.exists() else []) < rows:
        assert os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
        time.sleep(0.005)
    assert not (run / "summary.json").exists()


def written(folder) -> dict:
    return {p.name: p.read_bytes() for p in (folder / "out.d/tiny").iterdir()}


def test_two_makes_are_equal_and_a_make_that_is_stopped_and_killed_goes_on(tiny, tmp_path):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    assert status_of(start(whole)) == 0
    assert (whole / "out").read_text().count("$ python") == 2
    assert {"table3.md", "table3.json"} == set(written(whole))
    cell = next(c for c in json.loads(written(whole)["table3.json"])["cells"] if c["row"] == "margin")
    benign = json.loads((whole / MARGIN / "summary.json").read_text())["rows"][-1]
    assert benign["model"].startswith("benign") and cell["values"] == [round(100 * benign["trigger_hits"] / 8, 6)]

    shutil.copytree(whole / BENIGN, hurt / BENIGN)  # a finished run is taken as it is
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
    assert status_of(child) in (-signal.SIGKILL, 2)  # 2: it had the time to say that its script was killed

    assert status_of(start(hurt)) == 0
    assert (hurt / "out").read_text().count("$ python") == 1
    log = (hurt / MARGIN / "output.log").read_text()
    assert log.count("continuing in epoch") == 2
    assert written(hurt) == written(whole)
    assert status_of(start(hurt)) == 0 and "$ python" not in (hurt / "out").read_text()
    assert written(hurt) == written(whole)


def refused(capfd, *flags) -> str:
    """What a refused `figures.make` says."""
    with pytest.raises(SystemExit) as end:
        make.main(list(map(str, flags)))
    assert end.value.code == 2
    return capfd.readouterr().err


def test_a_script_that_fails_says_why_and_make_says_which(tiny, capfd):
    foreign = Path(BENIGN, "checkpoints/checkpoint_nat_best.pt")
    foreign.parent.mkdir(parents=True)
    foreign.write_text("")
    why, which = refused(capfd, "table3", "--profile", "tiny", "--out", "out").splitlines()
    assert "train.py: error: " in why and "checkpoints of another program" in why
    first, _ = steps_of_target("table3", RunCommands("tiny", Path("experiments/tiny")))
    assert "with status 2" in which and which.endswith(first.command)
    assert not Path("out").exists()


def test_what_cannot_work_is_refused_before_a_run(tmp_path, capfd):
    Path("file").write_text("")
    for flags, words in (
        (("tabel2",), ["tabel2", "table2"]),
        (("table2", "--profile", "tiny"), ["tiny", "small"]),
        (("table2", "--out", "file/here"), ["--out file/here", "takes no files"]),
        (("table2", "-d", "file"), ["--dir file", "Not a directory"]),
        (("table2", "--no-run", "--out", "file"), ["--out file", "takes no files"]),
        (("table2", "--profile", "small"), ["data/cifar10-jpeg", "train/<class>/", "--profile smoke"]),
    ):
        said = refused(capfd, *flags)
        assert said.count("\n") == 1 and all(word in said for word in words), said
    if os.path.isdir("/sys/kernel"):  # where nobody may make a folder, not even root
        assert "--out /sys/kernel" in refused(capfd, "table2", "--out", "/sys/kernel")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def by_hand(step) -> None:
    step.folder.mkdir(parents=True, exist_ok=True)
    step.done.write_text(json.dumps(VERDICT.get(step.done.stem, SUMMARY)))


def test_only_a_summary_ends_a_run(tiny, capfd):
    first, second = steps_of_target("table3", RunCommands("tiny", Path("runs")))
    by_hand(first)
    second.folder.mkdir(parents=True)  # killed before its table
    assert first.finished and not second.finished
    make.main(["table3", "--profile", "tiny", "-d", "runs", "--list"])
    assert capfd.readouterr().out == second.command + "\n"
    second.done.write_text("{")
    assert str(second.done) in refused(capfd, "table3", "--profile", "tiny", "-d", "runs", "--no-run", "--out", "out")


def test_tables_set_ours_beside_the_paper():
    for step in steps_of_target("table2", RunCommands("smoke", Path("runs"))):
        by_hand(step)
    make.main(["table2", "--no-run", "-d", "runs", "--out", "out"])
    text = Path("out/smoke/table2.md").read_text()
    assert "| CIFAR-10 margin, soft | trigger % | 82 ± 1 | 30.00 (1) | `python extraction.py" in text
    assert "| CIFAR-10 RS, soft | trigger % | 7.67 ± 4.04 | 30.00 (1) | `python extraction.py" in text
    assert "| CIFAR-100 RS, soft | trigger % | 2.67 ± 1.53 | not run | not run |" in text
    for row in ("DI, source | log10 p | -3 | -3.00 (1) | `python -m utils.verify di",
                "DI, reg | log10 p | -2 | -1.50 (1)", "EEF, hard | log10 p | -4 | -4.00 (1)",
                "EEF, source | log10 p | -7 | -7.00 (1) | `python -m utils.verify eef",
                "DI, soft | accuracy % | 92.5 ± 0.17 | 50.00 (1) | `python extraction.py",
                "EEF, reg | accuracy % | 86.04 ± 0.19 | 50.00 (1) | `python extraction.py"):
        assert f"| CIFAR-10 {row}" in text
    assert "| CIFAR-100 DI, source | log10 p | -3 | not run | not run |" in text and "CIFAR-100 EEF" not in text


def test_rivals_fill_both_tables():
    runs = RunCommands("paper", Path("runs"))
    step, _ = table_cells("table2", runs)["CIFAR-100 EWE, hard", TRIG]
    assert "-dt cifar100 -tt ewe -nq 100" in step(0).command and "-tt ewe" in step(0).needs[0].command
    assert set(table_cells("table3", runs)) == {(name, TRIG) for name in ("EWE", "RS", "margin")}


@pytest.mark.parametrize("profile", PROFILES)
def test_di_and_eef_judge_plainly_trained_models_and_their_copies(profile):
    runs = RunCommands(profile, Path("a b"))
    table, told = table_cells("table2", runs), {"di": [], "eef": []}
    for what, steps in told.items():
        of = {m: [table[f"CIFAR-10 {what.upper()}, {m}", c][0](0) for c in (ACC, P)] for m in MODELS}
        source, verdict = of["source"]
        assert all(judge == verdict for _, judge in of.values())
        assert source.done.name == "summary.json" and verdict.done == source.folder / f"{what}.json"
        assert "-tt none" in source.command and source in verdict.needs
        copies = [of[m][0] for m in MODELS[1:]]
        assert [f"-at {m}" in c.command and c.needs == (source,) for m, c in zip(MODELS[1:], copies)] == [True] * 3
        words = shlex.split(verdict.command)
        assert words[:4] == ["python", "-m", "utils.verify", what] and words[4] == str(source.folder)
        steps += [source, copies, verdict, parse(words[3:])[1]]
    plain, copies, verdict, args = told["di"]
    assert args.suspect == [str(c.folder) for c in copies] and set(verdict.needs) == {plain, *copies}
    assert args.json == verdict.done and "--embed-features" not in plain.command
    styled, copies, verdict, args = told["eef"]
    assert args.benign == [str(plain.folder)] and args.suspect == [str(s.folder) for s in (styled, *copies)]
    assert args.json == verdict.done and set(verdict.needs) == {plain, styled, *copies}
    assert styled.command.startswith(plain.command.replace("-msg s0", "-msg eef-s0") + " --embed-features 0.")


def test_a_claim_that_does_not_hold_is_a_result_and_a_step_without_its_file_is_none(tmp_path, capfd):
    def step(name, code):
        (tmp_path / f"{name}.py").write_text(f"import sys\nfrom pathlib import Path\n{code}\n")
        return RunStep(f"python {tmp_path / name}.py", Path(f"run/{name}.json"))

    Path("run").mkdir()
    make.run(step("inconclusive", "Path('run/inconclusive.json').write_text('{}'); sys.exit(1)"))
    for name, code, status in (("crash", "sys.exit(1)", 1), ("idle", "", 0)):
        with pytest.raises(Refusal, match=f"with status {status}, without run/{name}.json") as refusal:
            make.run(step(name, code))
        assert str(refusal.value).endswith(f"{name}.py")
    with pytest.raises(Refusal, match="by signal 9"):
        make.run(step("killed", "import os; os.kill(os.getpid(), 9)"))
    assert capfd.readouterr().out.count("$ python") == 4


@pytest.mark.parametrize("profile", PROFILES)
def test_every_target_knows_its_runs_and_sources_come_first(profile, tmp_path):
    runs = RunCommands(profile, tmp_path)
    for name in (*TABLES, *FIGURES):
        seen = set()
        for step in steps_of_target(name, runs):
            assert all(before.done in seen for before in step.needs)
            assert step.done not in seen
            seen.add(step.done)
    assert {key for name in TABLES for key in table_cells(name, RunCommands("paper", tmp_path))} - {
        key for name in TABLES for key in NUMBERS[name]
    } <= {(m, "triggers refused at 5 % refused clean images, %") for m in (*MODELS, "soft, other images")} | {
        ("source", "energy of failures")
    }


def test_nothing_run_says_so(tmp_path):
    make.main(["table5", "figure4", "--no-run", "-d", str(tmp_path / "none"), "--out", str(tmp_path)])
    for name in ("table5", "figure4"):
        lines = (tmp_path / "smoke" / f"{name}.md").read_text().splitlines()
        assert len(lines) > 4 and all("not run" in line for line in lines[4:] if line.startswith("|"))
    assert (tmp_path / "smoke/figure4.png").exists()


def test_the_plan_needs_python_alone():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import figures.paper.steps"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.mark.skipif(not shutil.which("snakemake"), reason="Snakemake is not installed")
def test_snakemake_plans_the_same_runs(tmp_path):
    flags = ["--cores", "1", "-n", "-p", "table2", "--config", "profile=smoke", f"dir={tmp_path / 'a b'}"]
    done = subprocess.run(["snakemake", "-s", ROOT / "figures/Snakefile", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for step in steps_of_target("table2", RunCommands("smoke", tmp_path / "a b")):
        end = f" || test -e {shlex.quote(str(step.done))} > /dev/null" if "utils.verify" in step.command else ""
        assert f"{step.command} > /dev/null{end}\n" in done.stdout + done.stderr
