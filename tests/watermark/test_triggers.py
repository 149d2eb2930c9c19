"""The trigger set: disjoint from everything else, never under a true label, uniform over the rest."""

import pytest
import torch
from scipy import stats

from utils.data.sets import Images, load_data, split_indices
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import draw_trigger_picture
from utils.watermark.triggers import draw_triggers, validation_images

CLASSES = 10


@pytest.fixture(scope="module")
def held_out():
    """The held-out images of a data set of CIFAR's size, one pixel each (the sampler does not look at them)."""
    _, rest = split_indices(50_000)
    labels = torch.randint(0, CLASSES, (50_000,), generator=torch.Generator().manual_seed(4))[rest]
    pixels = (torch.tensor(rest) % 256).to(torch.uint8).view(-1, 1, 1, 1)
    return Images(pixels, labels, torch.tensor(rest))


def test_over_1000_seeds_triggers_are_disjoint_and_never_under_a_true_label(held_out):
    train = set(split_indices(50_000)[0])
    everything = set(held_out.indices.tolist())
    label_of = dict(zip(held_out.indices.tolist(), held_out.labels.tolist()))
    counts = torch.zeros(CLASSES, CLASSES)
    firsts = set()
    for seed in range(1000):
        triggers, validation = draw_triggers(held_out, 100, 1, CLASSES, seed)
        sources, kept = triggers.sources.flatten().tolist(), validation.indices.tolist()
        assert len(triggers) == 100 and len(set(sources)) == 100 and len(kept) == 900
        assert not set(sources) & set(kept) and set(sources) | set(kept) == everything and not set(sources) & train
        assert triggers.true_labels.flatten().tolist() == [label_of[i] for i in sources]
        assert not (triggers.labels[:, None] == triggers.true_labels).any()
        assert 0 <= triggers.labels.min() and triggers.labels.max() < CLASSES
        counts.index_put_((triggers.true_labels[:, 0], triggers.labels), torch.ones(100), accumulate=True)
        firsts.add(tuple(sources[:3]))
    assert len(firsts) > 990  # seeds draw different sets
    for true in range(CLASSES):  # uniform over the nine others, for each true label
        wrong = counts[true][torch.arange(CLASSES) != true]
        assert counts[true, true] == 0 and stats.chisquare(wrong.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("k", [2, 3, 9])
def test_mixup_labels_avoid_all_sources_and_are_uniform_over_the_rest(held_out, k):
    allowed_counts = torch.zeros(CLASSES, CLASSES)  # [number of allowed labels - 1, rank among them]
    for seed in range(300):
        triggers, validation = draw_triggers(held_out, 20, k, CLASSES, seed)
        assert triggers.true_labels.shape == triggers.sources.shape == (20, k) and len(triggers) == 20
        assert len(set(triggers.sources.flatten().tolist())) == 20 * k == 1000 - len(validation.labels)
        assert not torch.isin(validation.indices, triggers.sources).any()
        assert not (triggers.labels[:, None] == triggers.true_labels).any()
        for label, true in zip(triggers.labels.tolist(), triggers.true_labels.tolist()):
            allowed = sorted(set(range(CLASSES)) - set(true))
            allowed_counts[len(allowed) - 1, allowed.index(label)] += 1
    for size in range(2, CLASSES + 1):
        row = allowed_counts[size - 1, :size]
        if row.sum() >= 10 * size:
            assert stats.chisquare(row.numpy()).pvalue > 1e-3, size


def test_mixup_image_is_the_rounded_mean_of_its_sources():
    g = torch.Generator().manual_seed(0)
    held_out = Images(torch.randint(0, 256, (40, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(40) % 5,
                      torch.arange(100, 140))
    triggers, _ = draw_triggers(held_out, 6, 3, 5, seed=1)
    for image, true, sources in zip(triggers.images, triggers.true_labels, triggers.sources):
        own = held_out.images[sources - 100]
        assert torch.equal(image, own.double().mean(0).round().to(torch.uint8)) and image.shape == (3, 32, 32)
        assert torch.equal(true, held_out.labels[sources - 100])
    single, _ = draw_triggers(held_out, 6, 1, 5, seed=1)
    assert torch.equal(single.images, held_out.images[single.sources[:, 0] - 100])  # unchanged, bit for bit


def test_triggers_are_a_function_of_the_seed(held_out):
    one, two = (draw_triggers(held_out, 50, 1, CLASSES, seed=7)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize("strategy", ["highest", "lowest"])
def test_label_strategies_by_hand(held_out, strategy):
    """The clean model ranks class 3 first, then 4, ..., and 2 last; the true label is skipped."""
    ranking = [(3 + i) % CLASSES for i in range(CLASSES)]
    logits = torch.zeros(CLASSES)
    for place, c in enumerate(ranking):
        logits[c] = -float(place)
    triggers, _ = draw_triggers(held_out, 100, 1, CLASSES, 0, strategy, lambda images: logits.expand(len(images), -1))
    order = ranking if strategy == "highest" else ranking[::-1]
    for label, (true,) in zip(triggers.labels.tolist(), triggers.true_labels.tolist()):
        assert label == (order[0] if true != order[0] else order[1])


@pytest.mark.parametrize("m, k, flag", [(1000, 1, "-nq"), (1001, 1, "-nq"), (500, 2, "-nq"), (0, 1, "-nq"),
                                        (5, 10, "-nm"), (5, 11, "-nm"), (5, 0, "-nm")])
def test_impossible_trigger_sets_are_refused(held_out, m, k, flag):
    with pytest.raises(Refusal, match=flag):
        draw_triggers(held_out, m, k, CLASSES, 0)


def test_no_trigger_is_a_training_or_validation_image():
    data = load_data("digits")
    triggers, validation = draw_triggers(data.held_out, 30, 2, 10, seed=3)
    assert not torch.isin(triggers.sources, data.train.indices).any()
    assert not torch.isin(triggers.sources, validation.indices).any()
    # extraction finds the same validation images through the source indices in the checkpoint
    again = validation_images(data, triggers)
    assert sorted(again.indices.tolist()) == sorted(validation.indices.tolist())


def test_picture_names_true_and_assigned_labels(tmp_path):
    data = load_data("digits")
    triggers, _ = draw_triggers(data.held_out, 12, 2, 10, seed=0)
    draw_trigger_picture(triggers, [f"a $\\frac$ long class name {c}" for c in data.classes], tmp_path / "trigger.png")
    assert (tmp_path / "trigger.png").read_bytes().startswith(b"\x89PNG")
    from PIL import Image

    with Image.open(tmp_path / "trigger.png") as picture:
        assert picture.width > 500 and picture.height > 150
