"""The door: refuses without CUDA, ends with 1 where a check failed, and writes what it found."""

import json
from dataclasses import replace

import pytest
import torch

from utils import check_gpu
from utils.cost.contenders import Contenders
from utils.gpu_checks.rates import settings_of
from utils.gpu_checks.result import Check, attempt, attempt_all, format_checks

ROW = {"model": "res18", "objective": "margin", "rendering": "bf16", "missing": "out of time"}


def test_it_refuses_without_cuda(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        check_gpu.main(["--json", str(tmp_path / "gpu.json")])
    assert ended.value.code == 2 and "has no CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize("holds, status", [(True, None), (None, None), (False, 1)])
def test_its_status_and_its_file(holds, status, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(check_gpu, "check_steps", lambda device: [Check("a step", True, "bit-equal")])
    monkeypatch.setattr(check_gpu, "check_commands", lambda end: [Check("two processes", holds, "seen")])
    monkeypatch.setattr(check_gpu, "measure_rates", lambda *a, **k: [ROW])
    file = tmp_path / "gpu.json"
    if status is None:
        check_gpu.main(["--json", str(file)])
    else:
        with pytest.raises(SystemExit) as ended:
            check_gpu.main(["--json", str(file)])
        assert ended.value.code == status
    found = json.loads(file.read_text())
    assert found["command"] == f"python -m utils.check_gpu --json {file}"
    assert found["device_name"] == "NVIDIA H100 80GB HBM3" and found["rows"] == [ROW]
    assert [check["holds"] for check in found["checks"]] == [True, holds, None]  # no recorded step was timed
    said = capsys.readouterr().out
    assert "not measured: out of time" in said and "ok      a step: bit-equal" in said
    assert check_gpu.default_path("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_a_timed_step_that_fell_back_fails():
    timed = {"model": "res18", "objective": "margin", "rendering": "bf16, recorded", "ms_per_step": 1.0}
    assert check_gpu.check_rows([ROW, timed]) == check_gpu.check_rows([timed, ROW])
    assert check_gpu.check_rows([ROW, timed]).holds and check_gpu.check_rows([ROW, timed]).seen == "1 of 2 rows timed"
    assert check_gpu.check_rows([ROW]).holds is None
    check = check_gpu.check_rows([ROW, {**ROW, "failed": "OutOfMemoryError: x"}])
    assert check.holds is False and check.seen == "res18 margin bf16: OutOfMemoryError: x"
    check = check_gpu.check_rows([ROW, ROW | {"fell_back": "no CUDA graph (x)"}])
    assert check.holds is False and check.seen == "res18 margin bf16: no CUDA graph (x)"


def test_a_check_that_raises_has_failed():
    def broken():
        raise RuntimeError("CUDA error:\nunspecified launch failure")

    assert attempt("a step", broken) == Check("a step", False, "RuntimeError: CUDA error: unspecified launch failure")
    assert attempt("a step", lambda: Check("it", True, "x")) == Check("it", True, "x")
    assert attempt_all("steps", broken) == [attempt("steps", broken)] and attempt_all("x", lambda: []) == []


def test_the_steps_are_checked_where_there_is_no_gpu_too(monkeypatch):
    """Every check fails for the reason that it must have here, and the global switches are put back."""
    tiny = replace(settings_of("res18"), width=2, batch_size=8, trigger_batch=3, num_query=6, steps=1)
    device = torch.device("cpu")
    monkeypatch.setattr(check_gpu, "OBJECTIVES", ("soft",))
    checks = check_gpu.check_steps(device, Contenders(tiny, device))
    assert len(checks) == 6 and not torch.are_deterministic_algorithms_enabled()
    assert {check.seen for check in checks[:4]} == {"nothing was recorded"}


def test_commands_that_cannot_start_are_failures(monkeypatch):
    def broken(*_):
        raise OSError("no more processes")

    monkeypatch.setattr("utils.gpu_checks.scripts.start", broken)
    checks = check_gpu.check_commands(0.0, "cpu")
    assert [check.holds for check in checks] == [False, None] and "no more processes" in checks[0].seen


def test_checks_read_as_lines():
    lines = format_checks([Check("a", True, "x"), Check("b", False, "y"), Check("c", None, "z")]).splitlines()
    assert lines == ["ok      a: x", "FAILED  b: y", "not run c: z"]
