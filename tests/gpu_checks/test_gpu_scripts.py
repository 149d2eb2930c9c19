"""The checks of whole commands, on the CPU with a tiny network: they pass what is right and find what is not."""

import subprocess
import sys
import time

import pytest

from utils.gpu_checks import scripts
from utils.gpu_checks.scripts import Started, check_logs, check_scripts, check_two_processes, finish

TINY = "--width 4 --batch-size 128 -ep 4"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """(folder, checks) of two sources and two thefts on the CPU."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        small = lambda words: words.replace("--width 16 --batch-size 32 -ep 24", TINY)
        patch.setattr(scripts, "SOURCE", small(scripts.SOURCE))
        patch.setattr(scripts, "SOURCES", {"tf32": "", "whole": scripts.EXACT})
        thefts = {"soft extraction": small(scripts.THEFTS["soft extraction"]), "no such attack": "extraction.py -at x"}
        patch.setattr(scripts, "THEFTS", thefts)
        return folder, check_scripts(folder, time.monotonic() + 200, "cpu")


def test_right_commands_pass_and_a_failing_one_is_named(checked):
    accuracy, continued, soft, wrong, logs = checked[1]
    assert accuracy.holds and accuracy.seen.startswith("tf32 ") and "whole " in accuracy.seen
    assert continued.holds and continued.seen == "bit-equal"
    assert soft.holds and soft.what == "soft extraction of the source"
    assert wrong.holds is False and wrong.seen.startswith("exit status 2: extraction.py: error: argument -at")
    assert logs.holds and logs.seen == "4 logs"


def test_a_fallback_in_a_log_is_found(checked, tmp_path):
    assert check_logs(tmp_path).holds is False  # no log, no proof
    log = tmp_path / "run" / "output.log"
    log.parent.mkdir()
    log.write_text("12:00 epoch 1\n12:00 no CUDA graph (RuntimeError: x): going on with ordinary steps\n")
    check = check_logs(tmp_path)
    assert check.holds is False and "no CUDA graph (RuntimeError: x)" in check.seen


def test_what_differs_or_was_never_stopped_is_found(checked, monkeypatch):
    folder, _ = checked
    monkeypatch.setattr(scripts, "SOURCES", {"tf32": "", "whole": ""})
    none = {"tf32": None, "whole": None, "cut": None}
    assert scripts._check_accuracies(folder, none | {"whole": "out of time"}).seen == "whole: out of time"
    monkeypatch.setattr(scripts, "POINTS", -1)
    assert scripts._check_accuracies(folder, none).holds is False
    assert scripts._check_continued(folder, none, None).seen == "it was not stopped: it ran to its end"
    monkeypatch.setattr(scripts, "largest_difference", lambda *_: 0.5)
    check = scripts._check_continued(folder, none, "exit status 143: x")
    assert check.holds is False and check.seen == "weights differ by 5.0e-01"


def test_what_hangs_is_killed_with_what_it_has_started(tmp_path):
    said = tmp_path / "said"
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    with open(said, "w") as file:
        process = subprocess.Popen([sys.executable, "-c", child], stdout=file, start_new_session=True)
    began = time.monotonic()
    assert finish({"it": Started(process, said)}, began + 0.5) == {"it": "out of time"}
    assert time.monotonic() - began < 30 and process.returncode == -9


def test_two_processes_need_two_gpus(tmp_path):
    check = check_two_processes(tmp_path, 0.0, count=1)
    assert check.holds is None and check.seen == "1 GPU here"
