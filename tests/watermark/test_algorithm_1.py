"""Training with the watermark objective equals Algorithm 1, written out step by step."""

import pytest
import torch
from algorithm_1 import K, oracle
from tiny_training import close, start, train

STEPS = 6


@pytest.mark.parametrize("bn_stats", ["paper", "clean", "shared"])
@pytest.mark.parametrize("reduction", ["joint", "sum"])
def test_trainer_equals_algorithm_1(reduction, bn_stats):
    run, model, spy, steps_data = train(STEPS, reduction, bn_stats)
    w, running = start()
    losses, gradients, live, clean = oracle(w, running, steps_data, reduction=reduction, bn_stats=bn_stats,
                                            ascent_steps=K)
    assert spy.losses == pytest.approx(losses, abs=1e-10, rel=0) and len(losses) == STEPS
    assert run.written[0]["loss"] == pytest.approx(sum(losses) / STEPS, abs=1e-10)
    for name, p in model.named_parameters():
        assert close(p.grad, gradients[name]), name
        assert close(p, w[name]), name
        assert not torch.equal(p, start()[0][name]), f"{name} never moved"
    for layer, (mean, var) in zip((model[1][1], model[1][4]), live):
        assert close(layer.running_mean, mean) and close(layer.running_var, var)
    if bn_stats == "paper":
        kept = spy.statistics.state()
        assert len(kept) == 4
        for layer, (mean, var) in zip(("1.1", "1.4"), clean):
            assert close(kept[f"{layer}.running_mean"], mean) and close(kept[f"{layer}.running_var"], var)
    else:
        assert spy.statistics.state() == {}


@pytest.mark.parametrize("reduction", ["joint", "sum"])
def test_erm_watermark_is_algorithm_1_without_ascent(reduction):
    _, model, spy, steps_data = train(4, reduction, ascent_steps=0)
    w, running = start()
    losses, *_ = oracle(w, running, steps_data, reduction=reduction, bn_stats="paper", ascent_steps=0)
    assert spy.losses == pytest.approx(losses, abs=1e-10, rel=0)
    assert all(close(p, w[name]) for name, p in model.named_parameters())


def test_learning_rate_falls_at_half_and_three_quarters():
    run, model, _, steps_data = train(2, epochs=4)
    w, running = start()
    for epoch, rate in enumerate((0.1, 0.1, 0.01, 0.001)):
        *_, live, _ = oracle(w, running, steps_data[2 * epoch : 2 * epoch + 2], reduction="joint", bn_stats="paper",
                             ascent_steps=K, rate=rate)
        running = live
        assert run.written[epoch]["lr"] == pytest.approx(rate, rel=1e-12)
    assert all(close(p, w[name]) for name, p in model.named_parameters())


def test_paper_and_clean_share_weights_and_differ_in_statistics():
    run, paper, spy, _ = train(STEPS, "joint", "paper")
    _, clean, _, _ = train(STEPS, "joint", "clean")
    for (name, a), b in zip(paper.named_parameters(), clean.parameters()):
        assert torch.equal(a, b), name
    for i in (1, 4):
        for kind in ("running_mean", "running_var"):
            a, b = getattr(paper[1][i], kind), getattr(clean[1][i], kind)
            assert (a - b).abs().max() > 1e-4
            assert close(spy.statistics.state()[f"1.{i}.{kind}"], b)
            # and this is what the `*_clean` checkpoints hold
            assert close(run.saved["latest_clean"]["model"]["state_dict"][f"1.{i}.{kind}"], b)
            assert torch.equal(run.saved["latest"]["model"]["state_dict"][f"1.{i}.{kind}"], a)
            resumed = run.saved["latest"]["training"]["clean"][f"1.{i}.{kind}"]
            assert torch.equal(resumed, spy.statistics.state()[f"1.{i}.{kind}"])
