"""Triggers that a clean model is unsure about, and labels drawn from the classes that it finds plausible."""

import pytest
import torch
from hostile_files import refusal_of
from scipy import stats

from utils.data.sets import Images
from utils.runs.checkpoints import save_checkpoint
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import pack_triggers, read_triggers
from utils.watermark.triggers import TriggerSet, draw_triggers

SHARP, TWO, EVEN = [0.0, -99, -99], [0.0, 0, -99], [0.0, 0, 0]  # entropies about 0, ln 2 and ln 3
LOGITS = torch.tensor([SHARP, TWO, EVEN, SHARP, TWO, EVEN, SHARP])


def images_of(n, classes):
    """n held-out images, each filled with its position; labels 0, 1, ..., and indices from 100 on."""
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 32, 32).contiguous()
    return Images(pixels, torch.arange(n) % classes, torch.arange(100, 100 + n))


def answering(logits):
    """A predictor that gives the image which is filled with i the logits of row i."""
    return lambda images: logits[images[:, 0, 0, 0].long()]


@pytest.fixture(scope="module")
def many():
    """200 held-out images of 10 classes, and logits for them."""
    return images_of(200, 10), torch.randn(200, 10, generator=torch.Generator().manual_seed(1))


def draw(many, seed=0, m=150, choices=2, **more):
    held_out, logits = many
    return draw_triggers(held_out, m, 1, 10, seed, "plausible", answering(logits), choices=choices, **more)[0]


def test_the_most_uncertain_images_become_triggers():
    """Entropy ln 3 at 2 and 5, then ln 2 at 1 and 4, of which the first is taken; in the order of the held-out set."""
    for seed in (0, 1):
        triggers, left = draw_triggers(images_of(7, 3), 3, 1, 3, seed, "random", answering(LOGITS), "uncertain")
        assert triggers.sources.tolist() == [[101], [102], [105]] and triggers.true_labels.tolist() == [[1], [2], [2]]
        assert triggers.images[:, 0, 0, 0].tolist() == [1, 2, 5]
        assert left.indices.tolist() == [100, 103, 104, 106]
        assert triggers.candidates.shape == (3, 0) and not (triggers.labels == triggers.true_labels[:, 0]).any()


def test_candidates_are_the_most_probable_classes():
    """Of equally probable classes the smaller number comes first; the true label may be one of them."""
    logits = torch.tensor([[0.0, 3, 1, 2], [5, 5, 5, 5], [-1, -4, -3, -2], [0, 1, 1, 0], [9, 8, 7, 6]])
    triggers, _ = draw_triggers(images_of(5, 4), 4, 1, 4, 0, "plausible", answering(logits), choices=3)
    wanted = [[1, 3, 2], [0, 1, 2], [0, 3, 2], [1, 2, 0], [0, 1, 2]]
    assert triggers.candidates.tolist() == [wanted[i] for i in triggers.images[:, 0, 0, 0].tolist()]


def test_the_draw_is_that_of_random_labels_over_other_classes(many):
    """randperm, then uniform scores, of which the largest among the candidates wins: written out here."""
    triggers = draw(many, seed=7, choices=3)
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(200, generator=generator)
    scores = torch.rand(150, 10, generator=generator, dtype=torch.float64)
    assert triggers.sources.flatten().tolist() == (order[:150] + 100).tolist()
    for label, row, candidates in zip(triggers.labels.tolist(), scores.tolist(), triggers.candidates.tolist()):
        assert label == max(candidates, key=lambda c: row[c])
    plain, _ = draw_triggers(many[0], 150, 1, 10, 7)
    assert torch.equal(plain.images, triggers.images) and not torch.equal(plain.labels, triggers.labels)


@pytest.mark.parametrize("choices", [2, 3, 10])
def test_labels_are_uniform_over_the_candidates(many, choices):
    counts, true = torch.zeros(choices), 0
    for seed in range(200):
        triggers = draw(many, seed, choices=choices)
        place = (triggers.candidates == triggers.labels[:, None]).nonzero()
        assert place[:, 0].tolist() == list(range(150))  # each label is one of its candidates
        counts += torch.bincount(place[:, 1], minlength=choices)
        true += int((triggers.labels == triggers.true_labels[:, 0]).sum())
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3 and true > 0


@pytest.mark.parametrize("choices, logits, words", [
    (11, torch.zeros(200, 10), "--label-choices 11: the data set has 10 classes; pass 2 to 10"),
    (1, torch.zeros(200, 10), "--label-choices 1"),
    (2, torch.zeros(200, 9), "--label-model answers with 9 classes, the data set has 10"),
    (2, torch.full((200, 10), torch.nan), "--label-model answers with numbers that are not finite"),
])
def test_what_cannot_be_drawn_is_refused(many, choices, logits, words):
    with pytest.raises(Refusal, match=words):
        draw((many[0], logits), choices=choices)


# ---- files ------------------------------------------------------------------------------------------------------


def entries(many, m=30):
    """The content of a triggers.pt of 30 triggers of 5 classes, with candidates."""
    triggers, _ = draw_triggers(images_of(40, 5), m, 1, 5, 0, "plausible", answering(many[1][:, :5]))
    return triggers.entries


def test_candidates_are_saved_and_read(many, tmp_path):
    triggers = TriggerSet(**entries(many))
    save_checkpoint(tmp_path / "triggers.pt", triggers.entries)
    again = read_triggers(tmp_path / "triggers.pt", 5)
    assert all(torch.equal(a, b) for a, b in zip(triggers, again)) and again.candidates.shape == (30, 2)
    assert torch.equal(pack_triggers(triggers)["query_model"]["state_dict"]["candidates"], triggers.candidates)


def test_sets_without_candidates_are_saved_as_before(many, tmp_path):
    triggers, _ = draw_triggers(many[0], 30, 1, 10, 0)
    assert list(triggers.entries) == ["images", "labels", "true_labels", "sources"]
    assert "candidates" not in pack_triggers(triggers)["query_model"]["state_dict"]
    for content in (triggers.entries, triggers._asdict()):
        save_checkpoint(tmp_path / "triggers.pt", content)
        assert read_triggers(tmp_path / "triggers.pt", 10).candidates.shape == (30, 0)
    four = TriggerSet(*triggers[:4])
    assert four.candidates.shape == (30, 0) and four.candidates.dtype == torch.int64 and len(four) == 30


@pytest.mark.parametrize("spoil, words", [
    (lambda c: c[:29], "not 2 to 5 for each trigger"),
    (lambda c: c.repeat(1, 3), "not 2 to 5 for each trigger"),
    (lambda c: torch.tensor(3), "not 2 to 5 for each trigger"),
    (lambda c: c.double(), "none of the 5 classes"),
    (lambda c: c.clone().index_fill_(0, torch.tensor(7), -1), "none of the 5 classes"),
    (lambda c: c.clone().index_fill_(0, torch.tensor(7), 2), "named twice"),
    (lambda c: (c + 1) % 5, "not among its candidates"),
    (lambda c: c.tolist(), "no attribute"),
])
def test_candidates_that_do_not_fit_are_refused(many, spoil, words, tmp_path):
    content = entries(many)
    save_checkpoint(tmp_path / "triggers.pt", content)
    assert refusal_of(tmp_path / "triggers.pt") is None
    save_checkpoint(tmp_path / "triggers.pt", content | {"candidates": spoil(content["candidates"])})
    assert words in refusal_of(tmp_path / "triggers.pt")
