"""Defences of a thief, by hand."""

import math

import pytest
import torch

from utils.attacks import defences
from utils.attacks.defences import DEFENCES, TRANSFORMATIONS, Queries, noisy, queries_of, rounded, unusual

P = torch.tensor([[0.9, 0.1, 0.0], [0.44, 0.46, 0.1], [0.2, 0.3, 0.5], [0.4, 0.3, 0.3]], dtype=torch.float64)


@pytest.fixture
def queries():
    return queries_of(P, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]), torch.tensor([[2.0, 0.0]]))


def seeded():
    return torch.Generator().manual_seed(0)


def test_entropy_and_distance_by_hand(queries):
    assert queries.entropy[0].item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert queries.distance.tolist() == pytest.approx([0.0, 1.0, 1 - math.sqrt(0.5), 2.0])


def test_rounding_makes_equal_what_was_near(queries):
    assert DEFENCES[0].answer(queries, queries, None).tolist() == [0, 1, 2, 0]
    assert rounded(1)(queries, queries, None).tolist() == [0, 1, 2, 0]  # 0.4 and 0.5 after rounding
    assert rounded(0)(queries._replace(probabilities=P * 0.9), queries, None).tolist() == [0, 0, 0, 0]


def test_only_the_unusual_share_is_changed(queries):
    """Entropies rise in the order 0, 1, 2, 3; distances in the order 0, 2, 1, 3."""
    for measure, share, wanted in (("entropy", 0.3, [0, 1, 2, -1]), ("entropy", 0.6, [0, 1, -1, -1]),
                                   ("distance", 0.6, [0, -1, 2, -1])):
        assert unusual(measure, share, defences.refuse)(queries, queries, None).tolist() == wanted


def test_random_answers_are_of_the_classes_they_name():
    many = Queries(P[1:2].expand(4000, 3), torch.zeros(4000), torch.zeros(4000))
    coin = defences.one_of_two(many, seeded())
    assert set(coin.tolist()) == {0, 1} and abs(coin.double().mean() - 0.5) < 0.05
    assert torch.bincount(defences.random_label(many, seeded())).min() > 1200
    changed = noisy(0.1)(many, many, seeded())
    assert 0.3 < (changed == 0).double().mean() < 0.55  # 0.44 against 0.46
    assert torch.equal(changed, noisy(0.1)(many, many, seeded()))
    assert (noisy(0.0)(many, many, seeded()) == 1).all()


def test_transformed_images_by_hand():
    grey = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    stripe = grey.clone()
    stripe[..., 16] = 250
    views = {name: change(stripe) for name, change in TRANSFORMATIONS.items()}
    assert views["2 bits a channel"][0][0, 0, 0].unique().tolist() == [85, 255]  # 100 / 85 and 250 / 85, rounded
    assert views["4 bits a channel"][0][0, 0, 0].unique().tolist() == [102, 255]
    assert [view[0, 0, 0].argmax().item() for view in views["mean with the mirror image"]] == [16, 15]
    kernel = torch.tensor([-2.0, -1, 0, 1, 2]).square().div(-2).exp()
    expected = 100 + 150 * kernel / kernel.sum()
    assert views["blur of sd 1 pixel"][0][0, 0, 8, 14:19].tolist() == pytest.approx(expected.tolist(), abs=0.51)
    loss = [(views[f"JPEG of quality {q}"][0].int() - stripe.int()).abs().sum() for q in (75, 30)]
    assert 0 < loss[0] < loss[1]
