"""`figures.regime`: the table of finished and of stopped runs."""

import json

from started_make import run_here

from figures import regime
from figures.runs import REGIMES, RunCommands


def test_finished_and_stopped_runs_are_in_the_table(tmp_path, capsys):
    runs = RunCommands(REGIMES["regime-smoke"], tmp_path / "runs", 0)
    flags = ["--profile", "regime-smoke", "--seeds", "0", "-d", str(runs.dir), "--out", str(tmp_path / "out")]
    source, copy = list(regime.steps_of_seed(runs, *regime.LENGTHS["regime-smoke"]).values())[:2]
    for step in (source, copy):
        run_here(step)
    capsys.readouterr()
    regime.main([*flags, "--first", "2"])
    whole = found = json.loads((tmp_path / "out/regime-smoke.json").read_text())
    assert list(found) == ["margin", "margin, soft copy"] and len(found["margin"][0]["epochs"]) == 2
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| margin")]
    assert [line[1] for line in lines] == ["paper", "clean", "paper"]
    assert "-" not in [line[3] for line in lines]

    source.done.unlink()  # as of a run that was stopped; beside it another seed, of another machine
    lent = found["margin"][0] | {"seed": 7, "device": "a GPU"}
    (tmp_path / "out/regime-smoke.json").write_text(json.dumps(found | {"margin": [lent]}))
    regime.main([*flags, "--first", "1", "--no-run"])
    said = capsys.readouterr().out
    lines = [line.split(" | ") for line in said.splitlines() if line.startswith("| margin |")]
    assert [line[2:6] for line in lines[:2]] == [["0", "-", "-", "-"]] * 2
    assert [line[2] for line in lines[2:]] == ["7", "7"]
    assert " (seeds 0); a GPU, torch" in said and " (seeds 7). T1" in said
    assert (tmp_path / "out/regime-smoke.png").stat().st_size > 1000
    # the same seed of another machine stays too
    (tmp_path / "out/regime-smoke.json").write_text(json.dumps({"margin": [lent | {"seed": 0}]}))
    regime.main([*flags, "--first", "1", "--no-run"])
    found = json.loads((tmp_path / "out/regime-smoke.json").read_text())
    assert len({run["device"] for run in found["margin"]}) == len(found["margin"]) == 2
    assert "| margin | paper | 0 (a GPU) |" in (tmp_path / "out/regime-smoke.md").read_text()
    # and a finished run stays until another of its machine and seed is finished
    (tmp_path / "out/regime-smoke.json").write_text(json.dumps(whole))
    regime.main([*flags, "--first", "1", "--no-run"])
    assert json.loads((tmp_path / "out/regime-smoke.json").read_text()) == whole
