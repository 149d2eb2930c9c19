"""The scripts under torchrun, with two processes; what these do is in two_processes.py."""

import json
from types import SimpleNamespace

import pytest
import torch
import two_processes
from commands import torchrun
from comparing import same_runs

RUN = "digits_vgg11_margin_4_"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the processes left: the runs `broken` and `whole`, the steps `two` and all that was printed, `text`."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "broken" / RUN).mkdir(parents=True)
    (folder / "broken" / RUN / "run.json").write_text("{}")  # an earlier run with other settings
    printed = torchrun("--max-restarts", 1, two_processes.__file__, folder)
    two = torch.load(folder / "two.pt", weights_only=True)
    return SimpleNamespace(broken=folder / "broken" / RUN, whole=folder / "whole" / RUN, two=two,
                           text=printed.stdout + printed.stderr)


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_equal_one(case, done):
    one, two = two_processes.few_steps(case), done.two[case]
    assert one[0].keys() == two[0].keys()
    for mine, theirs in zip(one[:2], two[:2]):
        for name, value in mine.items():
            assert float((value - theirs[name]).abs().max()) <= 1e-9, name
    assert two[2] == pytest.approx(one[2], abs=1e-9)


def test_scripts_under_torchrun(done):
    """Training and extraction: only rank 0 writes and prints, and the folder looks like that of one process."""
    assert all(done.text.count(f"epoch {i}/2  lr") == 2 for i in (1, 2)) and done.text.count("epoch 1/1  lr") == 1
    for folder, epochs in ((done.whole, 2), (done.whole / "extraction", 1)):
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == epochs
        assert 1 <= json.loads((folder / "summary.json").read_text())["chosen_epoch"] <= epochs


def test_after_sigterm_to_one_rank_and_the_death_of_another_the_run_ends_bit_equal(done):
    assert done.text.count("train.py: SIGTERM: saved in epoch 1") == 1, done.text
    assert done.text.count("continuing in epoch") == 2 and "another process of this run is lost" in done.text, done.text
    same_runs(done.broken, done.whole)
