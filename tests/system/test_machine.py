"""What a run records about the machine."""

import json

import pytest
from tiny_fit import tiny_fit


@pytest.mark.slow
def test_training_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tiny_fit(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["git_commit"] is None
    assert about["command"] and about["device"] == "cpu" and about["torch"] and about["python"] and about["started"]
