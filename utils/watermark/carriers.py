"""Natural images that carry the mark: training images near a trigger, trained under its label.

A thief asks natural images, so he learns of a trigger what the source answers around it. With n carriers for each
trigger, L_obj of Eq. 4 is taken over the training set

    D' = {(x_i, y_q(i)) : i in C} and {(x_i, y_i) : i not in C},   C = union over triggers q of the n nearest of q

where near is the cosine between features before the last layer of a clean model, and q(i) is the trigger to which x_i
is nearest. n = 0 is D' = D_b, the paper's.
"""

import argparse

import torch
from torch.nn.functional import normalize

import models
from utils.data.sets import Images
from utils.system.refusals import COUNT, Refusal, number
from utils.training.metrics import pass_length, predict

MOST = 0.5  # share of the training images that may be carriers


def count_or_share(text):
    """An argparse type: a whole number of carriers a trigger, or a share of the training images, in (0, 0.5]."""
    try:
        return number(float, 0, MOST, open_low=True)(text)
    except argparse.ArgumentTypeError:
        if "." in text:
            raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to {MOST}, nor a number") from None
        return COUNT(text)


def carriers_each(carriers, m: int, n_train: int) -> int:
    """Carriers of each of m triggers, for a number of them or a share of the training images, see `count_or_share`.

    Raises Refusal for a number that could relabel more than half of the images.
    """
    if isinstance(carriers, float):
        return max(1, round(carriers * n_train / m))
    if carriers * m > MOST * n_train:
        raise Refusal(f"--carriers {carriers}: {carriers * m} of {n_train} training images might get other labels; "
                      f"pass {max(1, int(MOST * n_train / m))} or fewer, or a share of the images, as 0.1")
    return carriers


def relabel_carriers(train: Images, triggers, features, n: int, log=lambda text: None) -> Images:
    """The training images with the n nearest of each trigger under the trigger's label.

    features  function of uint8 images (N, 3, H, W) -> (N, D), those of a clean model
    n         carriers a trigger, at most N
    log       takes a sentence that says how many labels that changes

    A carrier of two triggers takes the label of the nearer one, of equally near ones the first.
    """
    similarity = cosines(features(triggers.images), features(train.images))  # (m, N)
    near = similarity.topk(n, dim=1)
    kept = torch.full_like(similarity, -torch.inf).scatter(1, near.indices, near.values)
    closeness, owner = kept.max(dim=0)
    carries = closeness > -torch.inf
    labels = torch.where(carries, triggers.labels[owner], train.labels)
    log(f"carriers: {int(carries.sum())} of {len(labels)} training images have the label of a trigger; for "
        f"{int((labels != train.labels).sum())} it is not their own")
    return Images(train.images, labels, train.indices)


def nearest(features, points, k: int):
    """(m, k) positions of the k features (N, D) that are nearest to each of the points (m, D), by cosine."""
    return cosines(points, features).topk(k, dim=1).indices


def cosines(points, features):
    """Cosine similarity (m, N) of points (m, D) and features (N, D)."""
    return normalize(points, dim=1) @ normalize(features, dim=1).T


def require_features(model):
    """The last linear layer, whose inputs are the features; of a mean of models the last one's. Refusal without it."""
    model = getattr(model, "models", [model])[-1]
    last = models.last_linear(model)
    if last is None:
        raise Refusal(f"a {model.name} has no linear layer, before which features are taken; name another model")
    return last[1]


def last_features(model, images):
    """What the last linear layer of a model sees of uint8 images (N, 3, H, W), in eval mode: (N, D) on the CPU."""
    seen = []
    see = lambda layer, inputs: seen.append(inputs[0].float().flatten(1).cpu())
    with require_features(model).register_forward_pre_hook(see):
        predict(model, images, pass_length(images, 500))
    return torch.cat(seen)
