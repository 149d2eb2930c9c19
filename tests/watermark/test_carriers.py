"""Training images near a trigger that are trained under its label."""

import argparse
from argparse import Namespace

import pytest
import torch

import models
from utils.data.sets import Images
from utils.system.refusals import Refusal
from utils.watermark import carriers
from utils.watermark.trigger_files import check_groups
from utils.watermark.triggers import TriggerSet, validation_images


def filled(pixels):
    """Images that are filled with the given numbers."""
    return torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()


def test_carriers_are_a_number_or_a_share_and_most_of_a_set_is_refused():
    assert carriers.carriers_each(carriers.count_or_share("8"), m=50, n_train=800) == 8
    assert carriers.carriers_each(carriers.count_or_share("0.1"), m=50, n_train=1000) == 2  # of 100 images in all
    assert carriers.carriers_each(carriers.count_or_share("0.001"), m=50, n_train=1000) == 1
    with pytest.raises(Refusal, match="--carriers 9: 450 of 800 .* pass 8 or fewer, or a share"):
        carriers.carriers_each(9, m=50, n_train=800)
    for text in ("0", "0.7", "many"):
        with pytest.raises(argparse.ArgumentTypeError):
            carriers.count_or_share(text)


def angle_of_pixel(images):
    """Features (N, 2) of length 1 to 3 whose angle in degrees is the pixel: near means near in pixels."""
    degrees = images[:, 0, 0, 0].double() * torch.pi / 180
    return torch.stack([degrees.cos(), degrees.sin()], dim=1) * (1 + images[:, 0, 0, 0:1].double() % 3)


TRAIN = Images(filled([0, 10, 20, 30, 40, 50, 90]), torch.tensor([0, 1, 2, 0, 1, 2, 3]), torch.arange(7) + 7)


@pytest.mark.parametrize(("n", "labels", "said"), [
    (1, [0, 5, 2, 0, 6, 2, 3], "2 of 7 training images have the label of a trigger; for 2"),
    # pixels 10, 20 and 0 are the nearest of 11; 40, 30 and 50 of 39
    (3, [5, 5, 5, 6, 6, 6, 3], "6 of 7"),
    # 30 is the fourth of 11 and 20 the fourth of 39, each nearer to the other trigger
    (4, [5, 5, 5, 6, 6, 6, 3], "6 of 7"),
    (7, [5, 5, 5, 6, 6, 6, 6], "7 of 7"),
    (1, [0, 1, 2, 0, 6, 2, 3], "2 of 7 training images have the label of a trigger; for 1 it is not"),
])
def test_the_nearest_images_take_the_label_of_the_nearest_trigger(n, labels, said):
    """Triggers at 11 degrees under label 5 (or, in the last case, its own, 1) and at 39 degrees under label 6."""
    sentences, triggers = [], TriggerSet(filled([11, 39]), torch.tensor([1 if "for 1 it" in said else 5, 6]))
    changed = carriers.relabel_carriers(TRAIN, triggers, angle_of_pixel, n, sentences.append)
    assert changed.labels.tolist() == labels
    assert changed.images is TRAIN.images and changed.indices is TRAIN.indices
    assert TRAIN.labels.tolist() == [0, 1, 2, 0, 1, 2, 3]  # the data set itself keeps its labels
    assert len(sentences) == 1 and said in sentences[0]


def test_triggers_among_the_training_images_leave_all_held_out_ones_for_validation():
    triggers = TriggerSet(filled([30, 10]), torch.tensor([5, 6]), sources=torch.tensor([[10], [8]]),
                          candidates=torch.tensor([[5, 6]] * 2), groups=torch.tensor([0, 1]))
    held_out = TRAIN.pick(torch.tensor([1, 3]))  # numbered as the training images, where there is a folder val/
    assert validation_images(Namespace(held_out=held_out), triggers) is held_out


@pytest.mark.parametrize("groups, labels, candidates", [
    ([0, 0], [0, 0], [[0, 1], [0, 2]]), ([0, 2], [0, 0], [[0, 1]] * 2), ([0, -1], [0, 0], [[0, 1]] * 2),
    ([0, 0], [0, 0], None), ([0, 0], [0, 1], [[0, 1]] * 2),
    ([1, 0], [0, 0], [[0, 1]] * 2)])  # each named as the first of the other's group
def test_groups_of_other_labels_or_candidates_or_of_none_are_refused(groups, labels, candidates):
    of = lambda groups, labels, candidates: TriggerSet(
        filled([1, 2]), torch.tensor(labels), candidates=candidates, groups=torch.tensor(groups))
    check_groups(of([0, 0], [1, 1], torch.tensor([[0, 1]] * 2)))
    with pytest.raises(ValueError, match="group"):
        check_groups(of(groups, labels, None if candidates is None else torch.tensor(candidates)))


@pytest.mark.parametrize("name", ["res18", "vgg11"])
def test_last_features_are_what_the_last_layer_turns_into_logits(name, monkeypatch):
    model = models.build(name, 5, width=4).train()
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    monkeypatch.setattr(carriers, "pass_length", lambda *_: 3)
    features = carriers.last_features(model, images)
    assert model.training and not model[1].linear._forward_pre_hooks
    assert torch.allclose(model[1].linear(features), model.eval()(images.float() / 255), atol=1e-5)
