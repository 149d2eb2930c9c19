"""`python -m figures.regime`: runs beside each other, and the table of finished and of stopped runs."""

import json
import signal
import subprocess
import sys
import time

from commands import ROOT


def regime(tmp_path, *flags, **more):
    command = [sys.executable, "-m", "figures.regime", "--profile", "regime-smoke", "--seeds", "0", "-d",
               str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_runs_go_on_after_a_signal_and_stopped_ones_are_in_the_table(tmp_path):
    process = regime(tmp_path, "--first", "2", "--jobs", "2")
    source = tmp_path / "runs/digits_res18_margin_20_s0"
    while not (source / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 143 and "goes on from there" in error, out + error

    process = regime(tmp_path, "--first", "2")
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error
    found = json.loads((tmp_path / "out/regime-smoke.json").read_text())
    assert list(found) == ["margin", "margin, soft copy"] and len(found["margin"][0]["epochs"]) == 2
    lines = [line.split(" | ") for line in out.splitlines() if line.startswith("| margin")]
    assert [line[1] for line in lines] == ["paper", "clean", "paper"]

    (source / "summary.json").unlink()  # as of a run that was stopped
    out, error = regime(tmp_path, "--first", "1", "--no-run").communicate(timeout=60)
    assert [line.split(" | ")[3:6] for line in out.splitlines() if line.startswith("| margin")] == [["-"] * 3] * 2
    assert (tmp_path / "out/regime-smoke.png").stat().st_size > 1000
