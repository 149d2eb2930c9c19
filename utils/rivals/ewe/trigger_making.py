"""EWE's triggers: which images become triggers, and phase 2, which optimises them on the model of phase 1.

Departures from the official code: the patch is placed without its exchange of rows and columns; `svhn:D` means the
digit D as printed (the authors' class 8 is `svhn:9`); scikit-learn's digits, a folder of images and classes of the data
set itself are additional sources of images.
"""

import os
from pathlib import Path

import torch
from tqdm import tqdm

from utils.data.files import image_files, read_images
from utils.data.sets import Data, load_data
from utils.rivals.ewe.snnl import entanglement, observe_features
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet

PUSHES, LAST_PUSHES = 50, 5  # steps away from the target class: at most so many between SNNL steps; at the end
PATCH = 3  # pixels of 32, height and width of the patch


def gather_images(source: str, target: int, m: int, data: Data, root, seed: int) -> TriggerSet:
    """The m images that phase 2 turns into triggers of class `target`, drawn without replacement.

    source  "digits": the nines of scikit-learn's digits; "svhn:D": the digit D among SVHN's training images; a path
            with a separator: the image files in this folder; or the number of a class of `data`, whose training images
            then get a patch
    root    folder of SVHN
    seed    of the draw

    True labels and sources of the `TriggerSet` are empty where the images are from another data set. Raises Refusal
    where the images do not exist, are too few, or are training images of `data`.
    """
    classes, is_own_class, is_folder = len(data.classes), source.isdecimal(), os.sep in source
    if is_own_class:
        own_class = int(source)
        if own_class >= classes or own_class == target:
            others = f"name a class from 0 to {classes - 1} other than --ewe-target {target}"
            raise Refusal(f"--ewe-source {source}: {others}")
        members = data.train.pick((data.train.labels == own_class).nonzero().flatten())
        images = members.images
    elif is_folder:
        images = image_files(Path(source))
        if not images:
            raise Refusal(f"--ewe-source {source}: no image files lie in this folder; name one that holds some")
    else:
        name, digit = source.split(":") if ":" in source else (source, "9")
        if name == data.name:
            raise Refusal(f"--ewe-source {source}: -dt {data.name} holds these images itself; name one of its classes "
                          f"by its number, other than --ewe-target {target}")
        other = load_data(name, root, flag="--ewe-source", image_size=data.size)
        images = torch.cat([part.images[part.labels == int(digit)] for part in (other.train, other.held_out)])
    if m > len(images):
        raise Refusal(f"-nq {m}: --ewe-source {source} has only {len(images)} images; pass -nq {len(images)} or fewer")
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:m]
    flag, labels, unknown = f"--ewe-source {source}", torch.full((m,), target), torch.zeros(m, 0, dtype=torch.long)
    images = read_images([images[i] for i in drawn], data.size, flag) if is_folder else images[drawn]
    if is_own_class:
        return TriggerSet(images, labels, torch.full((m, 1), own_class), members.indices[drawn][:, None])
    check_foreign(images, data, flag)
    return TriggerSet(images, labels, unknown, unknown)


def check_foreign(images, data: Data, what: str) -> None:
    """Refuse triggers that are images of `data`, for training, validation or test.

    images uint8 (m, 3, S, S); `what` begins the error message.
    """
    secret = {image.numpy().tobytes() for image in images}
    for kind, part in (("training", data.train), ("validation", data.held_out), ("test", data.test)):
        same = sum(image.numpy().tobytes() in secret for image in part.images)
        if same:
            raise Refusal(f"{what}: {same} {kind} images of -dt {data.name} are triggers too; "
                          "name another --ewe-source")


def patch_size(size: int) -> int:
    """Height and width of the patch on images of `size` pixels: the authors' 3 of 32."""
    return max(1, round(PATCH * size / 32))


def patch_position(gradient) -> tuple[int, int]:
    """(row, column) of the window of a patch's size with the smallest sum of gradient (..., H, W).

    The official code exchanges rows and columns; this one does not.
    """
    g = gradient.reshape(-1, *gradient.shape[-2:]).sum(0)
    side = patch_size(g.shape[-1])
    sums = g.unfold(0, side, 1).unfold(1, side, 1).sum((2, 3))
    return divmod(int(sums.argmin()), sums.shape[1])


def make_triggers(model, source, target, *, label: int, temperatures, steps: int, step_size: float, threshold: float,
                  patch: bool = False):
    """Phase 2: source (m, 3, S, S) in [0, 1] -> triggers of the same shape, entangled with class `label`.

    target        (k, h, 3, S, S), images of the class: h for each of the k = ceil(m / h) batches of h triggers. The
                  last batch is filled up with the first triggers
    temperatures  T of the three layers, (3,)
    steps         rounds; a round first moves away from `label` until at most the share `threshold` of the batch is
                  classified as `label`, then takes one step towards a higher SNNL. `LAST_PUSHES` steps away from
                  `label` follow the last round
    step_size     how far a step moves every pixel
    patch         first write a patch at the place that the SNNL's gradient favours: 1 in the first channel

    `model` is expected in eval mode and is not changed.
    """
    m, h = len(source), target.shape[1]
    w = torch.arange(2 * h, device=source.device) < h
    batches = [torch.arange(i * h, (i + 1) * h) % m for i in range(len(target))]

    def snnl_gradient(x, partners):
        x = x.detach().requires_grad_()
        _, features = observe_features(model, model, torch.cat([x, partners]))
        return torch.autograd.grad(entanglement(features, w, temperatures).sum(), x)[0]

    def label_gradient(x):
        x = x.detach().requires_grad_()
        logits = model(x)
        share = (logits.argmax(1) == label).float().mean()
        return torch.autograd.grad(logits[:, label].sum(), x)[0], float(share)

    if patch:
        gradient = sum(snnl_gradient(source[rows], partners).sum(0) for rows, partners in zip(batches, target))
        row, column = patch_position(gradient)
        source, side = source.clone(), patch_size(source.shape[-1])
        source[:, 0, row : row + side, column : column + side] = 1
    made = torch.empty_like(source)
    bar = tqdm(total=len(target) * steps, desc="making triggers", disable=None, leave=False)
    for rows, partners in zip(batches, target):
        x, pushes = source[rows], 0
        for _ in range(steps):
            while pushes < PUSHES:
                gradient, share = label_gradient(x)
                if share <= threshold:
                    break
                x, pushes = (x - step_size * gradient.sign()).clamp(0, 1), pushes + 1
            x = (x + step_size * snnl_gradient(x, partners).sign()).clamp(0, 1)
            bar.update()
        for _ in range(LAST_PUSHES):
            x = (x - step_size * label_gradient(x)[0].sign()).clamp(0, 1)
        fresh = rows[: m - int(rows[0])]  # without the triggers that fill up the last batch
        made[fresh] = x[: len(fresh)]
    bar.close()
    return made
