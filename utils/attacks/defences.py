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


def rounded(digits: int) -> Callable:
    """Probabilities rounded to some digits; of equal ones the first counts."""
    return lambda queries, usual, generator: (queries.probabilities * 10**digits).round().argmax(1)


def noisy(sd: float) -> Callable:
    """Gaussian noise of standard deviation `sd` on each probability."""

    def answer(queries, usual, generator):
        noise = torch.randn(queries.probabilities.shape, generator=generator, dtype=torch.float64)
        return (queries.probabilities + sd * noise).argmax(1)

    return answer


def unusual(measure: str, share: float, instead: Callable) -> Callable:
    """`instead(queries, generator)` where "entropy" or "distance" is above that of all but a share of natural images.
    """

    def answer(queries, usual, generator):
        threshold = getattr(usual, measure).quantile(1 - share)
        return torch.where(getattr(queries, measure) > threshold, instead(queries, generator),
                           queries.probabilities.argmax(1))

    return answer


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
    return two.gather(1, torch.randint(2, (len(two), 1), generator=generator))[:, 0]


UNUSUAL = (
    ("refuses the {:.0%} least certain", "entropy", refuse, (0.05, 0.2)),
    ("random label for the {:.0%} least certain", "entropy", random_label, (0.05, 0.2)),
    ("one of the two most probable for the {:.0%} least certain", "entropy", one_of_two, (0.05, 0.2, 0.5)),
    ("refuses the {:.0%} farthest from his training images", "distance", refuse, (0.05, 0.2)),
    ("random label for the {:.0%} farthest", "distance", random_label, (0.05, 0.2)),
)
DEFENCES = (
    # the most probable label; so do answers without probabilities, from a cache, or after a delay
    Defence("none; labels only, cached, delayed", lambda queries, usual, generator: queries.probabilities.argmax(1)),
    Defence("rounded to one digit", rounded(1)),
    *(Defence(f"noise of sd {sd}", noisy(sd)) for sd in (0.1, 0.3)),
    *(Defence(name.format(share), unusual(measure, share, instead))
      for name, measure, instead, shares in UNUSUAL for share in shares),
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


# name -> images uint8 (N, 3, S, S) -> a list of such, over which the copy's probabilities are averaged
TRANSFORMATIONS = {
    "no transformation": lambda images: [images],
    "JPEG of quality 75": jpeg(75), "JPEG of quality 30": jpeg(30), "blur of sd 1 pixel": blurred(1.0),
    "4 bits a channel": fewer_levels(4), "2 bits a channel": fewer_levels(2),
    "mean with the mirror image": lambda images: [images, images.flip(-1)],
}
