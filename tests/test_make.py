"""`figures.make`: what it needs, what it writes, and that it goes on where it was killed; no real run but one."""

import json

import pytest

from figures import make
from figures.make import FIGURES, NUMBERS, PROFILES, TABLES, Runs
from utils.refuse import Refusal

SUMMARY = {"test_accuracy": 0.5, "trigger_hits": 3, "trigger_size": 10, "log10_p": {"T1": -4.0}, "rows": []}
NAMES = ("table2",)


@pytest.fixture
def fake(monkeypatch):
    """Stands in for the scripts: writes a summary, and fails at the calls whose numbers are in `broken`."""
    calls, broken = [], set()

    def run(words, **kwargs):
        calls.append(" ".join(words[1:]))
        step = next(s for s in fake_steps if s.command.split()[2:] == words[2:])
        if len(calls) in broken:
            return type("Done", (), {"returncode": 137})
        step.done.parent.mkdir(parents=True, exist_ok=True)
        step.done.write_text(json.dumps(SUMMARY))
        return type("Done", (), {"returncode": 0})

    fake_steps = []
    monkeypatch.setattr(make.subprocess, "run", run)
    return calls, broken, fake_steps


@pytest.mark.parametrize("profile", PROFILES)
def test_every_target_knows_its_runs_and_sources_come_first(profile, tmp_path):
    runs = Runs(profile, tmp_path)
    for name in (*TABLES, *FIGURES):
        seen = set()
        for step in make.steps_of(name, runs):
            assert all(before.done in seen for before in step.needs)
            assert step.done not in seen
            seen.add(step.done)
    assert {key for name in TABLES for key in make.cells(name, Runs("paper", tmp_path))} - {
        key for name in TABLES for key in NUMBERS[name]
    } <= {(m, "triggers refused at 5 % refused clean images, %") for m in (*make.MODELS, "soft, other images")} | {
        ("source", "energy of failures")
    }


def test_a_killed_make_goes_on_and_two_makes_are_equal(fake, tmp_path, capsys):
    calls, broken, steps = fake
    runs = Runs("smoke", tmp_path / "runs")
    steps += make.steps_of("table2", runs)
    broken.add(3)
    flags = ["table2", "--profile", "smoke", "-d", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        make.main(flags)
    assert "137" in capsys.readouterr().err and len(calls) == 3
    make.main(flags)
    assert len(calls) == 1 + len(steps) and calls[2] == calls[3]  # the broken one again, the finished ones not
    first = {p.name: p.read_bytes() for p in (tmp_path / "out/smoke").iterdir()}
    make.main(flags)
    assert len(calls) == 1 + len(steps)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out/smoke").iterdir()} == first
    text = first["table2.md"].decode()
    assert "| CIFAR-10 margin, soft | trigger % | 82 ± 1 | 30.00 (1) | `python extraction.py" in text
    assert "| CIFAR-10 EWE, soft | trigger % | 51.01 ± 5.58 | not run | not run |" in text


def test_nothing_run_says_so(tmp_path):
    make.main(["table5", "figure4", "--no-run", "-d", str(tmp_path / "none"), "--out", str(tmp_path)])
    for name in ("table5", "figure4"):
        lines = (tmp_path / "smoke" / f"{name}.md").read_text().splitlines()
        assert len(lines) > 4 and all("not run" in line for line in lines[4:] if line.startswith("|"))
    assert (tmp_path / "smoke/figure4.png").exists()


def test_a_broken_command_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(make.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 2}))
    with pytest.raises(Refusal, match="ended with status 2"):
        make.run(make.steps_of("table3", Runs("smoke", tmp_path))[0])
