"""The scripts under torchrun, with two processes; what these do is in two_processes.py."""

import pytest
import torch
import two_processes
from commands import ROOT, TORCHRUN, finished, rows_of, summary
from comparing import same_runs

from utils.system import refusals

RUN = "digits_vgg11_margin_4_"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the processes left: the runs `broken` and `whole`, their few steps, and all that was printed."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "broken" / RUN).mkdir(parents=True)
    (folder / "broken" / RUN / "run.json").write_text("{}")  # an earlier run with other settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        printed = finished(*TORCHRUN, "--max-restarts", 1, two_processes.__file__, folder)
    steps = torch.load(folder / "two.pt", weights_only=True)
    return folder / "broken" / RUN, folder / "whole" / RUN, steps, printed.stdout + printed.stderr


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_equal_one(case, done):
    one, two = two_processes.few_steps(case), done[2][case]
    assert one[0].keys() == two[0].keys()
    for mine, theirs in zip(one[:2], two[:2]):
        for name, value in mine.items():
            assert float((value - theirs[name]).abs().max()) <= 1e-9, name
    assert two[2] == pytest.approx(one[2], abs=1e-9)


def test_scripts_under_torchrun(done):
    """Only rank 0 writes and prints; after SIGTERM to one rank and the death of another the run ends bit-equal."""
    broken, whole, _, text = done
    assert text.count("epoch 1/2  lr") == text.count("epoch 2/2  lr") == 2 and text.count("epoch 1/1  lr") == 1
    for folder, epochs in ((whole, 2), (whole / "extraction", 1)):
        assert len(rows_of(folder)) == epochs and 1 <= summary(folder)["chosen_epoch"] <= epochs
    assert text.count("train.py: SIGTERM: saved in epoch 1") == 1, text
    assert text.count("continuing in epoch") == 2, text
    same_runs(broken, whole)


def test_the_loss_of_another_process_is_said_with_the_way_out(monkeypatch):
    """By the rank that is left, unless torchrun ends it before it notices."""
    monkeypatch.setattr(refusals, "exit_hooks", [print])
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert refusals._describe(lost) == ("the connection to another process of this run is lost; the same command goes "
                                        "on from what was saved (--overwrite begins anew)", 1)
