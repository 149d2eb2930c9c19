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


def check_architecture(flag: str, name: str, classes: int, size: int, width: int) -> None:
    """Refuse an architecture that does not turn images (N, 3, size, size) into logits (N, classes), or no `width`.

    flag  the flag that named it, for the message. One from outside is built and asked about two black images.
    """
    if name in models.NAMES:
        if name == "vgg11" and size < models.SIZE:
            raise Refusal(f"{flag} vgg11 halves its images five times: pass --image-size {models.SIZE} or more")
        return
    if width != 64:
        raise Refusal(f"--width {width}: it is for {', '.join(models.NAMES)}; a {name} has the width of its maker, so "
                      "leave it out")
    try:
        model = models.build(name, classes, size=size).eval()
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, size, size))
    except Exception as error:  # the maker and the network may raise anything
        why = " ".join(str(error).split())[:150]
        raise Refusal(f"{flag} {name} cannot be built for {classes} classes of images of {size} x {size} pixels "
                      f"({type(error).__name__}: {why}); pass another --image-size or architecture") from error
    if not (isinstance(logits, torch.Tensor) and logits.shape == (2, classes) and logits.is_floating_point()):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise Refusal(f"{flag} {name} gives no logits: for 2 images and {classes} classes it returned {found}, not "
                      f"{(2, classes)}")
    if not any(p.requires_grad for p in model.parameters()):
        raise Refusal(f"{flag} {name} has no weights to train: return a module with parameters")
