"""A thief who serves his copy in ways that are to make it miss the triggers, at some price in accuracy.

He does not know the triggers. He knows which of the images that he is asked are usual: how certain his copy is, and how
near the image is to his training images. A `Defence` changes answers of shape (N, C); an answer that is refused is -1.
Or he changes each image before his copy sees it (`TRANSFORMATIONS`), as in the lists of removals of Lukas et al.
("SoK: How Robust is Image Classification Deep Neural Network Watermarking?", S&P 2022).
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from torchvision.transforms.functional import gaussian_blur


class Queries(NamedTuple):
    """What the thief knows of N queries.

    probabilities  (N, C) of his copy
    entropy        (N,) of these, in nats
    distance       (N,) 1 - cosine to the nearest of his training images, in the copy's features
    """

    probabilities: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor


class Defence(NamedTuple):
    """`answer(queries, usual, generator)` -> labels (N,); `usual` are `Queries` of natural images, for thresholds."""

    name: str
    answer: Callable


def queries_of(probabilities, features, training_features) -> Queries:
    """What is known of queries with features (N, D), when those of the training images are (M, D)."""
    p = probabilities.double()
    entropy = -(p * p.clamp_min(1e-300).log()).sum(1)
    nearest = (normalize(features, dim=1) @ normalize(training_features, dim=1).T).amax(1)
    return Queries(p, entropy, 1 - nearest)


def unchanged(queries, usual, generator):
    """The most probable label; so do answers without probabilities, from a cache, or after a delay."""
    return queries.probabilities.argmax(1)


def rounded(digits: int) -> Callable:
    """Probabilities rounded to some digits; of equal ones the first counts."""
    return lambda queries, usual, generator: (queries.probabilities * 10**digits).round().argmax(1)


def noisy(sd: float) -> Callable:
    """Gaussian noise of standard deviation `sd` on each probability."""
    return lambda queries, usual, generator: (
        queries.probabilities + sd * torch.randn(queries.probabilities.shape, generator=generator,
                                                 dtype=torch.float64)).argmax(1)


def where(unusual: Callable, instead: Callable) -> Callable:
    """`instead(queries, generator)` where `unusual(queries, usual)` (N,) holds."""

    def answer(queries, usual, generator):
        return torch.where(unusual(queries, usual), instead(queries, generator), queries.probabilities.argmax(1))

    return answer


def uncertain(share: float) -> Callable:
    """Of higher entropy than all but a share of natural images."""
    return lambda queries, usual: queries.entropy > usual.entropy.quantile(1 - share)


def far(share: float) -> Callable:
    """Farther from the thief's training images than all but a share of natural images."""
    return lambda queries, usual: queries.distance > usual.distance.quantile(1 - share)


def refuse(queries, generator):
    """No answer."""
    return torch.full((len(queries.entropy),), -1)


def random_label(queries, generator):
    """Any class."""
    n, classes = queries.probabilities.shape
    return torch.randint(classes, (n,), generator=generator)


def one_of_two(queries, generator):
    """One of the two most probable classes, by a coin."""
    two = queries.probabilities.topk(2, dim=1).indices
    coin = torch.randint(2, (len(two), 1), generator=generator)
    return two.gather(1, coin)[:, 0]


DEFENCES = (
    Defence("none; labels only, cached, delayed", unchanged),
    Defence("rounded to one digit", rounded(1)),
    *(Defence(f"noise of sd {sd}", noisy(sd)) for sd in (0.1, 0.3)),
    *(Defence(f"refuses the {share:.0%} least certain", where(uncertain(share), refuse)) for share in (0.05, 0.2)),
    *(Defence(f"random label for the {share:.0%} least certain", where(uncertain(share), random_label))
      for share in (0.05, 0.2)),
    *(Defence(f"one of the two most probable for the {share:.0%} least certain", where(uncertain(share), one_of_two))
      for share in (0.05, 0.2, 0.5)),
    *(Defence(f"refuses the {share:.0%} farthest from his training images", where(far(share), refuse))
      for share in (0.05, 0.2)),
    *(Defence(f"random label for the {share:.0%} farthest", where(far(share), random_label)) for share in (0.05, 0.2)),
)


# ---- before the copy sees an image ----


def jpeg(quality: int) -> Callable:
    """Each image through a JPEG file of this quality (Guo et al., ICLR 2018)."""

    def through_files(images):
        changed = []
        for image in images:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=quality)
            changed.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
        return [torch.stack(changed)]

    return through_files


def blurred(sd: float) -> Callable:
    """A Gaussian of this standard deviation, in pixels, over 5 x 5 (a smoothing of Xu et al., NDSS 2018)."""
    return lambda images: [gaussian_blur(images, 5, sd)]


def fewer_levels(bits: int) -> Callable:
    """Channels of `bits` bits, 0 and 255 kept (the squeezed depth of Xu et al., NDSS 2018)."""
    most = 2**bits - 1
    return lambda images: [(images.float().div(255).mul(most).round() * (255 / most)).round().to(torch.uint8)]


def mirrored_too(images):
    """The image and its mirror image, whose probabilities are averaged."""
    return [images, images.flip(-1)]


# name -> images uint8 (N, 3, S, S) -> a list of such, over which the copy's probabilities are averaged
TRANSFORMATIONS = {
    "no transformation": lambda images: [images],
    "JPEG of quality 75": jpeg(75), "JPEG of quality 30": jpeg(30), "blur of sd 1 pixel": blurred(1.0),
    "4 bits a channel": fewer_levels(4), "2 bits a channel": fewer_levels(2),
    "mean with the mirror image": mirrored_too,
}
