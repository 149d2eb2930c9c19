"""A check, before anything is made, that an architecture can classify the images."""

import argparse

import torch

import models
from utils.system.refusals import Refusal

ARCHITECTURE_HELP = (f"architecture: {', '.join(models.NAMES)}, or tv:NAME, a classifier of torchvision, or "
                     "package.module:function, your own, which takes the number of classes")


def add_named_architectures(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Declare -mt of a command that reads models: which functions of the user's own may be imported, as a list.

    more  what else the flag names the architecture of
    """
    of = f"{more}, and of " if more else ""
    parser.add_argument("-mt", "--model-type", action="append", type=models.architecture, default=[], metavar="NAME",
                        help=f"architecture of {of}each checkpoint of a package.module:function of your own, which is "
                        "imported only if it is named here; may be repeated")


def check_architecture(flag: str, name: str, classes: int, size: int, width: int, way: str = "") -> None:
    """Refuse an architecture that does not turn images (N, 3, size, size) into logits (N, classes), or no `width`.

    flag  the flag that named it, for the message. One from outside is built and asked about two black images.
    way   what to do about one that does not take the size, for a command without --image-size
    """
    if name in models.NAMES:
        if name == "vgg11" and size < models.SIZE:
            way = way or f"pass --image-size {models.SIZE} or more"
            raise Refusal(f"{flag} vgg11 halves its images five times: {way}")
        return
    if width != 64:
        raise Refusal(f"--width {width}: it is for {', '.join(models.NAMES)}; a {name} has the width of its maker, so "
                      "leave it out")
    try:
        model = models.place(models.build(name, classes, size=size), "cpu").eval()
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, size, size))
    except (Exception, SystemExit) as error:  # the maker and the network may raise anything
        raise Refusal(f"{flag} {name} cannot be built for {classes} classes of images of {size} x {size} pixels "
                      f"({models.describe_error(error)}); "
                      f"{way or 'pass another --image-size or architecture'}") from error
    require_logits(f"{flag} {name} gives no logits", logits, classes)
    if not any(p.requires_grad for p in model.parameters()):
        raise Refusal(f"{flag} {name} has no weights to train: return a module with parameters")


def require_logits(what: str, logits, classes: int) -> None:
    """Refuse, in words that begin with `what`, answers to two images that are no floats of the shape (2, classes)."""
    if isinstance(logits, torch.Tensor) and logits.shape == (2, classes) and logits.is_floating_point():
        return
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found == (2, classes):
        found = f"{found} of {logits.dtype}"
    raise Refusal(f"{what}: for 2 images and {classes} classes it returned {found}, not {(2, classes)}")
