"""Two processes compute what one computes."""

import few_steps
import pytest
import torch
from commands import torchrun


def test_two_processes_equal_one(tmp_path):
    torchrun(few_steps.__file__, tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for case in few_steps.CASES:
        one = few_steps.few_steps(case)
        assert one[0].keys() == two[case][0].keys()
        for mine, theirs in zip((one[0], one[1]), two[case][:2]):
            for name, value in mine.items():
                assert float((value - theirs[name]).abs().max()) <= 1e-9, (case, name)
        assert two[case][2] == pytest.approx(one[2], abs=1e-9), case
