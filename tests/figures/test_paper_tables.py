"""The paper's tables and figures: which runs each needs, and what is written from their summaries."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, refused
from started_make import set_tiny

from figures import make
from figures.cells import FIGURES, TABLES, steps_of_target
from figures.runs import PROFILES, RunStep
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("elsewhere")

SUMMARY = {"test_accuracy": 0.5, "trigger_hits": 3, "trigger_size": 10, "log10_p": {"T1": -4.0, "T1p": -5.0}}
VERDICT = {
    "di": {"source": {"log10_p": -3.0}, "suspects": [{"log10_p": -2.5}, {"log10_p": -2.0}, {"log10_p": -1.5}]},
    "eef": {"suspects": [{"log10_p": -7.0}, {"log10_p": -4.5}, {"log10_p": -4.0}, {"log10_p": -0.5}]},
}


def by_hand(step) -> None:
    step.folder.mkdir(parents=True, exist_ok=True)
    step.done.write_text(json.dumps(VERDICT.get(step.done.stem, SUMMARY)))


def test_only_a_run_with_a_summary_is_finished(monkeypatch, capfd):
    set_tiny(monkeypatch)
    first, second = steps_of_target("table3", PROFILES["tiny"], Path("runs"))
    by_hand(first)
    second.folder.mkdir(parents=True)  # killed before it was finished
    assert first.result() == SUMMARY and second.result() is None
    make.main(["table3", "--profile", "tiny", "-d", "runs", "--list"])
    assert capfd.readouterr().out == second.command + "\n"
    second.done.write_text("{")
    flags = ("table3", "--profile", "tiny", "-d", "runs", "--no-run", "--out", "out")
    assert str(second.done) in refused("figures.make", *flags)


def test_a_copy_of_an_earlier_training_of_its_source_is_no_result(tmp_path):
    copy, weights = RunStep("", tmp_path / "extraction" / "summary.json"), tmp_path / "checkpoints/checkpoint_latest.pt"
    copy.folder.mkdir()
    weights.parent.mkdir()
    (weights.parent / "checkpoint_nat_best.pt").write_text("best")
    copy.done.write_text(json.dumps({"source_sha256": hashlib.sha256(b"old").hexdigest()}))
    assert copy.result()  # without weights nothing is known of them
    weights.write_text("old")
    assert copy.result()
    weights.write_text("newer")
    with pytest.raises(Refusal, match="earlier training of its source"):
        copy.result()


def test_tables_show_our_numbers_beside_the_papers_and_say_what_was_not_run():
    for step in steps_of_target("table2", PROFILES["smoke"], Path("runs")):
        by_hand(step)
    make.main(["table2", "table5", "figure4", "--no-run", "-d", "runs", "--out", "out"])
    text = Path("out/smoke/table2.md").read_text()
    for row in ("CIFAR-10 margin, soft | trigger % | 82 ± 1 | 30.00 (1) | `python extraction.py",
                "CIFAR-100 RS, soft | trigger % | 2.67 ± 1.53 | not run | not run |",
                "CIFAR-10 DI, source | log10 p | -3 | -3.00 (1) | `python -m utils.verify di",
                "CIFAR-10 DI, reg | log10 p | -2 | -1.50 (1)", "CIFAR-10 EEF, hard | log10 p | -4 | -4.00 (1)",
                "CIFAR-10 EEF, reg | accuracy % | 86.04 ± 0.19 | 50.00 (1) | `python extraction.py"):
        assert f"| {row}" in text
    for name in ("table5", "figure4"):
        lines = Path(f"out/smoke/{name}.md").read_text().splitlines()
        assert len(lines) > 4 and all("not run" in line for line in lines[8:] if line.startswith("|"))
    assert Path("out/smoke/figure4.png").exists()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_target_lists_its_runs_sources_first(profile, tmp_path):
    for name in (*TABLES, *FIGURES):
        seen = set()
        for step in steps_of_target(name, PROFILES[profile], tmp_path):
            assert all(before.done in seen for before in step.needs)
            assert step.done not in seen
            seen.add(step.done)


def test_the_plan_needs_only_the_standard_library():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import figures.cells"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.mark.skipif(not shutil.which("snakemake"), reason="Snakemake is not installed")
def test_snakemake_plans_the_same_runs(tmp_path):
    flags = ["--cores", "1", "-n", "-p", "table2", "--config", "profile=smoke", f"dir={tmp_path / 'a b'}"]
    done = subprocess.run(["snakemake", "-s", ROOT / "figures/Snakefile", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for step in steps_of_target("table2", PROFILES["smoke"], tmp_path / "a b"):
        end = f" || test -e {shlex.quote(str(step.done))} > /dev/null" if "utils.verify" in step.command else ""
        assert f"{step.command} > /dev/null{end}\n" in done.stdout + done.stderr
