"""Embedded external features: the classifier of signs and the comparison of its answers."""

import numpy as np
import pytest
import torch

from utils.rivals.embedded_features.classifier import SignScaler, meta_loss, posterior, train_classifier
from utils.rivals.embedded_features.command import EefVerdict, compare_posteriors


def test_double_softmax_loss_has_a_positive_minimum_and_the_plain_loss_has_none():
    one = torch.tensor([1])
    assert float(meta_loss(torch.zeros(1, 2), one, True)) == pytest.approx(0.693147, abs=1e-6)
    sure = torch.tensor([[-50.0, 50.0]])
    assert float(meta_loss(sure, one, True)) == pytest.approx(0.313262, abs=1e-6)
    assert float(meta_loss(sure, one)) < 1e-6


def test_sign_scaler_by_hand():
    """In a feature of mean sign .9, +1 becomes +.229 and -1 becomes -4.36; a constant feature becomes 0."""
    signs = torch.ones(20, 1, dtype=torch.int8)
    signs[0] = -1
    scaler = SignScaler.fit(signs, part=7)
    assert scaler(signs)[[1, 0], 0].tolist() == pytest.approx([0.2294, -4.3589], abs=1e-4)
    constant = SignScaler.fit(torch.ones(4, 2, dtype=torch.int8))
    assert torch.equal(constant(torch.ones(1, 2)), torch.zeros(1, 2)) and torch.equal(constant.std, torch.ones(2))


def signs_of(bias, n, seed):
    """Independent signs whose mean in feature j is bias[j]."""
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, len(bias), generator=g) < (1 + bias) / 2).to(torch.int8) * 2 - 1


@pytest.mark.parametrize("test, double", [("paired", False), ("official", True)])
def test_classifier_recognises_the_victims_signs_and_not_a_benign_models(test, double):
    generator = torch.Generator().manual_seed(0)
    benign, victim = (0.5 * (2 * torch.rand(48, generator=generator) - 1) for _ in range(2))
    state = torch.get_rng_state()
    classifier, scaler = train_classifier(signs_of(victim, 200, 1), signs_of(benign, 200, 2), epochs=20,
                                          double_softmax=double, own_scaler=test == "official")
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(p.shape) for p in classifier.parameters()] == [(6, 48), (6,), (3, 6), (3,), (2, 3), (2,)]
    ask = lambda bias, seed: posterior(
        classifier, None if test == "official" else scaler, signs_of(bias, 60, seed)).numpy()
    known = ask(benign, 3)
    assert compare_posteriors(ask(victim, 4), known, test).claim
    verdicts = [compare_posteriors(ask(benign, seed), known, test) for seed in range(5, 11)]
    assert sum(v.claim for v in verdicts) <= 1 and max(v.log10_p for v in verdicts) > -1.3
    again, _ = train_classifier(signs_of(victim, 200, 1), signs_of(benign, 200, 2), epochs=20,
                                double_softmax=double, own_scaler=test == "official")
    assert all(torch.equal(a, b) for a, b in zip(classifier.parameters(), again.parameters()))


def test_a_model_compared_with_itself_is_no_evidence():
    same = np.linspace(0, 1, 30)
    for test in ("paired", "official"):
        assert not compare_posteriors(same, same, test).claim
    assert compare_posteriors(same, same) == EefVerdict(0.0, 0.0, False)


def test_below_the_benign_model_there_is_no_claim():
    rng = np.random.default_rng(0)
    low, high = rng.uniform(0, 0.1, 50), rng.uniform(0.8, 1, 50)
    assert compare_posteriors(high, low).claim and compare_posteriors(high, low, "official").claim
    assert compare_posteriors(low, high).log10_p > -0.01
    below = compare_posteriors(low, high, "official")  # two-sided: as small a p as above
    assert below.log10_p < -4 and not below.claim
    still = compare_posteriors(np.ones(20), np.zeros(20))
    assert still.claim and still.difference == 1 and -100 < still.log10_p < -40
