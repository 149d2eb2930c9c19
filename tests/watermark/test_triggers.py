"""The trigger set: disjoint from everything else, under labels that are uniform over what their strategy allows."""

import io
from argparse import Namespace

import pytest
import torch
from PIL import Image
from scipy import stats

from utils.data.sets import Images, load_data, split_indices
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import draw_trigger_picture
from utils.watermark.triggers import draw_triggers, validation_images

CLASSES = 10


def images_of(n, classes):
    """n held-out images, each filled with its position; labels 0, 1, ..., and indices from 100 on."""
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 32, 32).contiguous()
    return Images(pixels, torch.arange(n) % classes, torch.arange(100, 100 + n))


def answering(logits):
    """A predictor that gives the image which is filled with i the logits of row i."""
    return lambda images: logits[images[:, 0, 0, 0].long()]


@pytest.fixture(scope="module")
def held_out():
    """The held-out images of a data set of CIFAR's size, one pixel each (the sampler does not look at them)."""
    _, rest = split_indices(50_000)
    labels = torch.randint(0, CLASSES, (50_000,), generator=torch.Generator().manual_seed(4))[rest]
    pixels = (torch.tensor(rest) % 256).to(torch.uint8).view(-1, 1, 1, 1)
    return Images(pixels, labels, torch.tensor(rest))


def left_of(held_out, triggers):
    """Indices of the validation images."""
    return validation_images(Namespace(held_out=held_out), triggers).indices.tolist()


def test_over_300_seeds_triggers_are_disjoint_and_never_under_a_true_label(held_out):
    train, everything = set(split_indices(50_000)[0]), set(held_out.indices.tolist())
    label_of = dict(zip(held_out.indices.tolist(), held_out.labels.tolist()))
    counts, firsts = torch.zeros(CLASSES, CLASSES), set()
    for seed in range(300):
        triggers = draw_triggers(held_out, 100, 1, CLASSES, seed)
        sources, kept = triggers.sources.flatten().tolist(), left_of(held_out, triggers)
        assert len(triggers) == 100 and len(set(sources)) == 100 and len(kept) == 900
        assert not set(sources) & set(kept) and set(sources) | set(kept) == everything and not set(sources) & train
        assert triggers.true_labels.flatten().tolist() == [label_of[i] for i in sources]
        counts.index_put_((triggers.true_labels[:, 0], triggers.labels), torch.ones(100), accumulate=True)
        firsts.add(tuple(sources[:3]))
    assert len(firsts) > 290  # seeds draw different sets
    for true in range(CLASSES):  # uniform over the nine others, for each true label
        wrong = counts[true][torch.arange(CLASSES) != true]
        assert counts[true, true] == 0 and stats.chisquare(wrong.numpy()).pvalue > 1e-3
    one, two = (draw_triggers(held_out, 50, 1, CLASSES, seed=7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values()))


@pytest.mark.parametrize("k", [2, 9])
def test_mixup_labels_avoid_all_sources_and_are_uniform_over_the_rest(held_out, k):
    counts = torch.zeros(CLASSES, CLASSES)  # [number of allowed labels - 1, rank among them]
    for seed in range(200):
        triggers = draw_triggers(held_out, 20, k, CLASSES, seed)
        assert triggers.true_labels.shape == triggers.sources.shape == (20, k)
        assert len(set(triggers.sources.flatten().tolist())) == 20 * k == 1000 - len(left_of(held_out, triggers))
        for label, true in zip(triggers.labels.tolist(), triggers.true_labels.tolist()):
            allowed = sorted(set(range(CLASSES)) - set(true))
            counts[len(allowed) - 1, allowed.index(label)] += 1
    for size in range(2, CLASSES + 1):
        row = counts[size - 1, :size]
        assert row.sum() < 10 * size or stats.chisquare(row.numpy()).pvalue > 1e-3, size


def test_a_trigger_is_the_rounded_mean_of_its_sources_which_are_no_validation_images():
    data = load_data("digits")
    place = {index: i for i, index in enumerate(data.held_out.indices.tolist())}
    for k in (1, 3):
        triggers = draw_triggers(data.held_out, 12, k, 10, seed=1)
        for image, true, sources in zip(triggers.images, triggers.true_labels, triggers.sources):
            own = data.held_out.pick([place[index] for index in sources.tolist()])
            assert torch.equal(image, own.images.double().mean(0).round().to(torch.uint8))
            assert torch.equal(true, own.labels)
        assert set(left_of(data.held_out, triggers)) == place.keys() - set(triggers.sources.flatten().tolist())
    drawn = draw_trigger_picture(triggers, [f"a $\\frac$ long class name {c}" for c in data.classes])
    picture = Image.open(io.BytesIO(drawn))
    assert picture.format == "PNG" and picture.width > 500 and picture.height > 150


def test_the_least_decided_images_share_a_draw_where_they_have_the_same_candidates():
    """Five images of classes 0 and 1 in turn, twice: ratios 2, 1, 1, 1.5 and 9 between the two likeliest wrong classes
    of four.
    """
    p = [[0.4, 0.2, 0.3, 0.1], [0.05, 0.85, 0.05, 0.01], [0.7, 0.1, 0.1, 0.1], [0.2, 0.4, 0.3, 0.1],
         [0.5, 0.36, 0.04, 0.1]]
    images, logits, found = images_of(10, 4), torch.tensor(p).log().repeat(2, 1), set()
    images = images._replace(labels=torch.arange(5).repeat(2) % 2)
    for seed in range(20):
        triggers = draw_triggers(images, 4, 1, 4, seed, "runners-up", answering(logits))
        assert triggers.images[:, 0, 0, 0].tolist() == [1, 2, 6, 7] and triggers.groups.tolist() == [0, 1, 0, 1]
        assert triggers.candidates.tolist() == [[0, 2], [1, 2]] * 2
        assert triggers.labels[:2].tolist() == triggers.labels[2:].tolist()
        found.add(tuple(triggers.labels[:2].tolist()))
    assert found == {(0, 1), (0, 2), (2, 1), (2, 2)}


def test_the_draw_is_that_of_random_labels_over_other_classes():
    """randperm, then uniform scores, of which the largest among the candidates wins: written out here."""
    held_out, predict = images_of(200, 10), answering(torch.randn(200, 10))
    triggers = draw_triggers(held_out, 150, 1, 10, 7, "plausible", predict, choices=3)
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(200, generator=generator)
    scores = torch.rand(150, 10, generator=generator, dtype=torch.float64)
    assert triggers.sources.flatten().tolist() == (order[:150] + 100).tolist()
    for label, row, candidates in zip(triggers.labels.tolist(), scores.tolist(), triggers.candidates.tolist()):
        assert label == max(candidates, key=lambda c: row[c])
    plain = draw_triggers(held_out, 150, 1, 10, 7)
    assert torch.equal(plain.images, triggers.images) and not torch.equal(plain.labels, triggers.labels)


@pytest.mark.parametrize("logits, words", [
    (torch.zeros(200, 9), "--label-model answers with 9 classes, the data set has 10"),
    (torch.full((200, 10), torch.nan), "--label-model answers with numbers that are not finite"),
])
def test_answers_of_a_clean_model_that_do_not_fit_are_refused(logits, words):
    with pytest.raises(Refusal, match=words):
        draw_triggers(images_of(200, 10), 150, 1, 10, 0, "plausible", answering(logits))


def test_the_true_class_is_no_runner_up():
    with pytest.raises(Refusal, match="pass 2 to 9"):
        draw_triggers(images_of(10, 10), 4, 1, 10, 0, "runners-up", choices=10)
