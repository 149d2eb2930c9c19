"""Dataset Inference: the rows of features, the regressor and the test of its scores."""

import numpy as np
import pytest
import torch
from scipy import stats

from utils.ownership import pvalues
from utils.rivals.dataset_inference.regressor import di_embed, di_regressor, score_difference


def test_layouts_of_di_features():
    features = torch.arange(40 * 30.0).view(40, 10, 3)
    mean, std = torch.zeros(3), torch.ones(3)
    assert di_embed(features, mean, std, "image").tolist() == features.view(40, 30).tolist()
    official = di_embed(features, mean, std, "official")
    assert official.shape == (40, 30) and official[0].tolist() == [30.0 * i for i in range(30)]
    scaled = di_embed(features, torch.tensor([0.0, 1, 2]), torch.tensor([1.0, 2, 4]), "image")
    assert scaled[0, :6].tolist() == [0, 0, 0, 3, 1.5, 0.75]  # (0, 1, 2) and (3, 4, 5), each metric scaled by itself


def test_di_regressor():
    rows = torch.randn(100, 30, generator=torch.Generator().manual_seed(3))
    score = di_regressor(rows + 1, rows - 1, 0)
    assert score(rows + 1).mean() < -0.99 and score(rows - 1).mean() > 0.99
    again = di_regressor(rows + 1, rows - 1, 0)
    assert torch.equal(score(rows), again(rows)) and score(rows).abs().max() <= 1
    same = di_regressor(rows, rows, 0)
    others = torch.randn(2, 1000, 30, generator=torch.Generator().manual_seed(4))
    assert float(same(others[0]).mean() - same(others[1]).mean()) == pytest.approx(0, abs=0.05)


def p_of(u, v, seed=0, m=None, repeats=1, **more):
    return 10 ** pvalues.subset_pvalues(u, v, m or len(u), repeats, np.random.default_rng(seed), **more)


def test_p_is_uniform_under_the_null_and_the_harmonic_mean_mildly_anti_conservative():
    rng, single, reported = np.random.default_rng(0), [], []
    for seed in range(100):
        u, v = torch.tensor(rng.normal(size=(2, 500)))
        single += list(p_of(u, v, seed, 10, 2))
        reported.append(score_difference(u, v, 10, seed)["log10_p"])
    assert stats.kstest(single, "uniform").pvalue > 0.01
    assert (np.array(reported) < np.log10(0.05)).mean() < 0.15 and (np.array(reported) < -2).mean() <= 0.04
    assert min(reported) < -1


def test_score_difference_needs_m_points_and_detects_a_shift():
    u, v = torch.rand(50) + 0.5, torch.rand(20)
    assert score_difference(u, v[:9], 10, 0) == {"points": 9, "mean_difference": None, "log10_p": None}
    found = score_difference(u, v, 10, 0)
    assert found["points"] == 20 and found["mean_difference"] == pytest.approx(float(u.mean() - v.mean()))
    assert found["log10_p"] < -2 < score_difference(v, u, 10, 0)["log10_p"]
