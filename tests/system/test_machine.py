"""What a run records about the machine, and its errors as one sentence."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from commands import ROOT
from tiny_fit import tiny_fit

from utils.system.machine import choose_device
from utils.system.refusals import Refusal, printable, refuse_in_one_sentence


def test_training_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tiny_fit(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["git_commit"] is None
    assert about["command"] and about["device"] == "cpu" and about["torch"] and about["python"] and about["started"]


@pytest.mark.parametrize("others, set_by_user, policy", [
    (0, {}, "None"), (1, {}, "passive"), (1, {"GOMP_SPINCOUNT": "9"}, "None")])
def test_threads_sleep_beside_busy_programs_unless_the_user_says_otherwise(others, set_by_user, policy):
    """On two cores, in a process of its own, that has not imported torch; `others` threads of other programs run."""
    code = (f"import os, utils; os.environ.pop('OMP_WAIT_POLICY', None); utils._running = lambda: 1 + {others}; "
            "os.cpu_count = lambda: 2; utils.wait_quietly_beside_others(); print(os.environ.get('OMP_WAIT_POLICY'))")
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"OMP_NUM_THREADS": "2"} | set_by_user
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.stdout.strip() == policy, done.stderr


def test_ctrl_c_during_the_imports_shows_no_traceback():
    ended = subprocess.run([sys.executable, "-c", "import utils; raise KeyboardInterrupt"], cwd=ROOT, text=True,
                           capture_output=True)
    assert ended.stderr == "interrupted\n" and ended.returncode


@pytest.mark.parametrize("error, status, said", [
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), 2, ["--batch-size", "--width", "--amp"]),
    (MemoryError(), 2, ["--batch-size"]), (OSError(28, "x", "/file"), 2, ["the disk is full (/file): free some space"]),
    (PermissionError(13, "x"), 2, ["no permission", "another place"]), (OSError(5, "I/O"), 2, ["check that place"]),
    (KeyboardInterrupt(), 128 + signal.SIGINT, ["interrupted", "goes on"]),
    (BrokenPipeError(), 141, ["what was saved"]),
    (Refusal("a server said \x1b[31mred\x1b[0m \x9b \u202e \udcff,\n\tand \u00e4"), 2,
     ["error: a server said \\x1b[31mred\\x1b[0m \\x9b \\u202e \\udcff, and \u00e4\n"]),
])
def test_errors_of_the_machine_and_of_others_become_one_sentence(error, status, said, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # of a scheduler: torchrun did not start this process

    @refuse_in_one_sentence
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    err = capsys.readouterr().err
    assert end.value.code == status and err.count("\n") == 1 and all(words in err for words in said), err


def test_closed_streams_are_no_error_and_no_file_takes_their_number(tmp_path):
    code = ("import sys; from tqdm import tqdm; from utils.system.refusals import refuse_in_one_sentence\n"
            "def main():\n    print(*tqdm(range(3)))\n    file = open(sys.argv[1], 'w')\n"
            "    file.write(str(file.fileno()))\nrefuse_in_one_sentence(main)()")
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, "-c", code, tmp_path / "file"],
                          cwd=ROOT)
    assert done.returncode == 0 and int((tmp_path / "file").read_text()) > 2


def test_a_mistake_of_ours_keeps_its_traceback_and_line_ends_stay():
    with pytest.raises(RuntimeError, match="a mistake"):
        refuse_in_one_sentence(lambda: (_ for _ in ()).throw(RuntimeError("a mistake")))()
    assert printable("two\nlines\r") == "two\nlines\\r"


def test_no_tf32_holds_from_the_choice_of_the_device_on():
    try:
        choose_device("cpu", tf32=False)
        assert not torch.backends.cudnn.allow_tf32
    finally:
        choose_device("cpu")
    assert torch.backends.cudnn.allow_tf32
