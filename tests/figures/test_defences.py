"""Defences of a thief by hand, and figures.defences on a copy of digits."""

import json
import math

import pytest
import torch
from commands import good, refused
from small_runs import SOURCE, STEAL, TRAIN

from figures import defences
from figures.defences import DEFENCES, TRANSFORMATIONS, Queries, noisy, queries_of, rounded, unusual
from utils.data.sets import load_data
from utils.ownership.pvalues import score_randomisation
from utils.runs.checkpoints import read_model
from utils.training.metrics import predict
from utils.watermark.trigger_files import read_triggers

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
    assert next(iter(DEFENCES.values()))(queries, queries, None).tolist() == [0, 1, 2, 0]
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


def test_a_copy_is_measured_under_every_defence(tmp_path):
    good("train", "-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", 2)
    good("extraction", "-e", tmp_path, *STEAL, "-at", "soft")
    copy, file = tmp_path / SOURCE / "extraction", tmp_path / "defences.json"
    defences.main([str(copy), "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    summary = json.loads((copy / "summary.json").read_text())
    assert [row["defence"] for row in rows] == [*DEFENCES, *TRANSFORMATIONS]
    flipped, model = rows[-1], read_model(copy)
    images, labels = (triggers := read_triggers(tmp_path / SOURCE / "triggers.pt", 10)).images, triggers.labels
    mean = (predict(model, images).softmax(1) + predict(model, images.flip(-1)).softmax(1)) / 2
    assert flipped["hits"] == int((mean.argmax(1) == labels).sum())
    assert flipped["log10_p_scores"] == pytest.approx(score_randomisation(
        mean.double().numpy(), labels.numpy(), triggers.true_labels.numpy(), triggers.candidates.numpy()))
    assert rows[0]["accuracy"] == pytest.approx(summary["test_accuracy"]) and rows[0]["refused"] == 0
    assert (rows[0]["hits"], rows[0]["log10_p"]) == (summary["trigger_hits"], summary["log10_p"]["T1"])
    # an image that is refused counts as wrong
    test = load_data("digits").test
    p = predict(model, test.images).softmax(1).double()
    right, uncertainty = p.argmax(1) == test.labels, torch.special.entr(p).sum(1)
    answered = right & (uncertainty <= uncertainty.quantile(0.95))
    (refusing,) = [row["accuracy"] for row in rows if row["defence"] == "refuses the 5% least certain"]
    assert refusing == pytest.approx(float(answered.double().mean()))
    assert "| none; labels only, cached, delayed | 1 soft |" in (tmp_path / "defences.md").read_text()
    assert "is no finished run of distill.py" in refused("figures.defences", tmp_path, "--json", file)
    summary["log10_p"]["T1"] = None  # as of labels that were not drawn
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "T1 does not apply" in refused("figures.defences", copy, "--json", file)
