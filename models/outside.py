"""Architectures from outside this project: torchvision's by name, and functions of the user's own.

    tv:NAME                    a classifier of torchvision, `torchvision.models.get_model(NAME)`, with random weights
    package.module:function    a callable that takes the number of classes, as `num_classes` if it takes that name,
                               else as its only one, and returns a module with logits

A user's function is imported when the command line names it, and never because a file does: `named` holds the names of
this command line, and reading a checkpoint asks there.
"""

import argparse
import difflib
import importlib
import inspect
import re

import torch
from torch import nn
from torch.nn.parameter import is_lazy

TORCHVISION = "tv:"
named = {}  # name -> function, of the user's functions that the command line named


def is_torchvision(name: str) -> bool:
    """Whether this is `tv:` and the name of a classifier that torchvision registers."""
    return name.startswith(TORCHVISION) and name.removeprefix(TORCHVISION) in _torchvision_names()


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def describe_error(error: BaseException) -> str:
    """The kind of an error of somebody's code and its text, as one line of bounded length."""
    why = " ".join(str(error).split())[:150]
    if isinstance(error, SystemExit):  # without this the command would end as if it were done
        why = f"it ends the program{f' with {why}' if why not in ('', '0', 'None') else ''}"
    return f"{type(error).__name__}: {why}" if why else type(error).__name__


def check_outside_name(text: str) -> str:
    """Return a name of one of the two kinds, and import a user's function; ArgumentTypeError for what is neither."""
    if is_torchvision(text):
        return text
    if text.startswith(TORCHVISION):
        near = difflib.get_close_matches(text.removeprefix(TORCHVISION), _torchvision_names())
        hint = f"; near it are {', '.join(TORCHVISION + name for name in near)}" if near else ""
        raise argparse.ArgumentTypeError(f"torchvision has no classifier {text.removeprefix(TORCHVISION)!r}{hint}")
    module, function = text.split(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # the user's module may raise anything, and may be a script
        raise argparse.ArgumentTypeError(
            f"{text} cannot be imported ({describe_error(error)}): its module lies beside the script or in a folder of "
            "PYTHONPATH, and is called neither models nor utils") from error
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{text} is no function: name one that takes the number of classes")
    named[text] = found
    return text


def looks_like_function(text: str) -> bool:
    """Whether this is written as `package.module:function`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None and not text.startswith(TORCHVISION)


def build_outside(name: str, num_classes: int, size: int) -> nn.Module:
    """The network of a name, normalised x (N, 3, size, size) -> logits (N, num_classes), with random weights.

    Raises KeyError for a function that the command line did not name, and whatever its maker raises.
    """
    if name.startswith(TORCHVISION):
        from torchvision import models

        name = name.removeprefix(TORCHVISION)
        more = {"image_size": size} if name.startswith("vit_") else {}  # its positions are counted
        if name in ("googlenet", "inception_v3"):
            more = {"aux_logits": False, "init_weights": True}
        return models.get_model(name, weights=None, num_classes=num_classes, **more)
    try:
        signature = inspect.signature(named[name])  # maybe after pretrained, or among **kwargs
        by_name = "num_classes" in signature.parameters or bool(signature.bind(num_classes=num_classes))
    except (TypeError, ValueError):  # it takes another name, or hides what it takes
        by_name = False
    try:
        network = named[name](num_classes=num_classes) if by_name else named[name](num_classes)
    except SystemExit as error:
        raise RuntimeError(describe_error(error)) from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"it returned a {type(network).__name__}, no torch.nn.Module")
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        with torch.no_grad():  # its lazy layers, as LazyLinear, learn their sizes from images
            network.eval()(torch.zeros(2, 3, size, size))
        network.train()
    return network
