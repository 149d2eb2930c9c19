"""Two processes compute what one computes."""

import json

import margin_gradients
import pytest
import ten_steps
import torch
from commands import torchrun


def test_two_processes_equal_one(tmp_path):
    torchrun(ten_steps.__file__, tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for case in ten_steps.CASES:
        one = ten_steps.ten_steps(case)
        assert one[0].keys() == two[case][0].keys()
        for mine, theirs in zip((one[0], one[1]), two[case][:2]):
            for name, value in mine.items():
                assert float((value - theirs[name]).abs().max()) <= 1e-9, (case, name)
        assert two[case][2] == pytest.approx(one[2], abs=1e-9), case


def test_ddp_is_exact_only_where_the_triggers_split_evenly(tmp_path):
    """Why `training.global_batch` gathers logits: DDP averages ranks of 12 and 13 triggers with equal weights."""
    torchrun(margin_gradients.__file__, tmp_path / "distances.json")
    distances = json.loads((tmp_path / "distances.json").read_text())
    assert distances["ours"]["24"] <= 1e-12 and distances["ours"]["25"] <= 1e-12
    assert distances["ddp"]["24"] <= 1e-12 and distances["ddp"]["25"] > 0.05
