"""Training with the watermark objective equals Algorithm 1, written out step by step."""

import itertools

import pytest
import torch
from algorithm_1 import K, oracle
from tiny_training import close, start, train

from utils.watermark.batchnorm import BN_MODES

STEPS = 6
ERM = [("joint", "paper", 0), ("sum", "paper", 0)]  # without an ascent


@pytest.mark.parametrize("reduction, bn_stats, ascent_steps", [
    *itertools.product(("joint", "sum"), BN_MODES, (K,)), *ERM])
def test_trainer_equals_algorithm_1(reduction, bn_stats, ascent_steps):
    run, model, spy, steps_data = train(STEPS, reduction, bn_stats, ascent_steps)
    w, running = start()
    losses, gradients, live, clean = oracle(w, running, steps_data, reduction=reduction, bn_stats=bn_stats,
                                            ascent_steps=ascent_steps)
    assert spy.losses == pytest.approx(losses, abs=1e-10, rel=0) and len(losses) == STEPS
    assert run.written[0]["loss"] == pytest.approx(sum(losses) / STEPS, abs=1e-10)
    for name, p in model.named_parameters():
        assert close(p.grad, gradients[name]), name
        assert close(p, w[name]), name
        assert not torch.equal(p, start()[0][name]), f"{name} never moved"
    keeps_clean = bn_stats in ("paper", "eval")
    checkpoints = {"latest": live, "latest_clean": clean} if keeps_clean else {"latest": live}
    for checkpoint, averages in checkpoints.items():
        saved = run.saved[checkpoint]["model"]["state_dict"]
        for layer, (mean, var) in zip(("1.1", "1.4"), averages):
            assert close(saved[f"{layer}.running_mean"], mean) and close(saved[f"{layer}.running_var"], var)
    assert ("nat_best_clean" in run.saved) == ("latest_clean" in run.saved) == keeps_clean
    resumed = run.saved["latest"]["training"]["clean"]  # from which a continued run goes on
    assert resumed.keys() == ({n for n in saved if "running" in n} if keeps_clean else set())
    assert all(torch.equal(resumed[name], saved[name]) for name in resumed)


def test_learning_rate_falls_at_half_and_three_quarters():
    run, model, _, steps_data = train(2, epochs=4)
    w, running = start()
    for epoch, rate in enumerate((0.1, 0.1, 0.01, 0.001)):
        *_, live, _ = oracle(w, running, steps_data[2 * epoch : 2 * epoch + 2], reduction="joint", bn_stats="paper",
                             ascent_steps=K, rate=rate)
        running = live
        assert run.written[epoch]["lr"] == pytest.approx(rate, rel=1e-12)
    assert all(close(p, w[name]) for name, p in model.named_parameters())
