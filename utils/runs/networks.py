"""Networks from outside are built, asked, trained for a step, saved and read again before a run is made."""

import argparse
import contextlib
import copy
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import models
from utils.runs.checkpoints import pack_checkpoint, refuse_errors, restore_model, save_checkpoint
from utils.system.machine import autocast, is_rank_0
from utils.system.refusals import Refusal
from utils.system.tensors import read_tensors

ARCHITECTURE_HELP = (f"architecture: {', '.join(models.NAMES)}, or tv:NAME, a classifier of torchvision, or "
                     "package.module:function, your own, which takes the number of classes")


def add_named_architectures(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Declare -mt of a command that reads models: the functions of the user's own that may be imported, and `more`."""
    of = f"{more}, and of " if more else ""
    parser.add_argument("-mt", "--model-type", action="append", type=models.architecture, default=[], metavar="NAME",
                        help=f"architecture of {of}each checkpoint of a package.module:function of your own, which is "
                        "imported only if it is named here; may be repeated")


def check_architecture(flag: str, name: str, classes: int, size: int, width: int, way: str = "") -> None:
    """Refuse an architecture that does not turn images (N, 3, size, size) into logits (N, classes), or has no `width`.

    One from outside is built and asked about two black images.

    flag  the flag that named it
    way   what the refusal of a size advises, in a command without --image-size
    """
    if name in models.NAMES:
        if name == "vgg11" and size < models.SIZE:
            way = way or f"pass --image-size {models.SIZE} or more"
            raise Refusal(f"{flag} vgg11 halves its images five times: {way}")
        return
    if width != 64:
        raise Refusal(f"--width {width}: it is for {', '.join(models.NAMES)}; a {name} has the width of its maker, so "
                      "leave it out")
    with refuse_errors(f"{flag} {name} cannot be built for {classes} classes of images of {size} x {size} pixels",
                       way or "pass another --image-size or architecture, or mend your function"), torch.no_grad():
        model = models.place(models.build(name, classes, size=size), "cpu").eval()
        logits = model(torch.zeros(2, 3, size, size))
    _require_logits(f"{flag} {name} gives no logits", logits, classes)
    if not any(p.requires_grad for p in model.parameters()):
        raise Refusal(f"{flag} {name} has no weights to train: return a module with parameters")


def _require_logits(what: str, logits, classes: int) -> None:
    """Refuse, in words that begin with `what`, answers to two images that are no logits of the shape (2, classes)."""
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (2, classes):
        raise Refusal(f"{what}: for 2 images and {classes} classes it returned {found}, not {(2, classes)}")
    if (logits >= 0).all() and ((logits.float().sum(1) - 1).abs() < 1e-3).all():
        raise Refusal(f"{what} but probabilities, which sum to 1: leave its last softmax out")


def check_training(flag: str, name: str, classes: int, size: int, width: int, device="cpu", amp=None,
                   deterministic: bool = False, batch_size: int = 2, compile: bool = False):
    """Refuse what `check_architecture` refuses, and a network that cannot be trained on `device`, saved and read again.

    amp         bf16 or fp16 of autocast, None: full precision
    batch_size  images of a step; BatchNorm cannot normalise one image whose activations are 1 x 1
    compile     whether torch.compile has to find a compiler

    Returns the model of the trial, or None for one of `models.NAMES`, which are tried with a batch of one image alone.
    """
    check_architecture(flag, name, classes, size, width)
    if compile:
        check_compile(device)
    if batch_size == 1:
        check_single_images(f"{flag} {name}", models.build(name, classes, width=width, size=size))
    if name in models.NAMES:
        return None
    how = f"{device}{' with --amp' if amp else ''}{' with --deterministic' if deterministic else ''}"
    with refuse_errors(f"{flag} {name} cannot be trained on {how}", "mend its train mode, or pass another architecture"
                       ), contextlib.ExitStack() as afterwards:
        afterwards.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        if deterministic:
            torch.use_deterministic_algorithms(True)
        model = models.place(models.build(name, classes, size=size), device).train()
        x = _images(model)
        with autocast(x.device.type, amp):
            logits = model(x)
        _require_logits(f"{flag} {name} gives no logits in train mode", logits, classes)
        if logits.requires_grad:
            _loss(logits).backward()
    if all(p.grad is None for p in model.parameters()):
        raise Refusal(f"{flag} {name} cannot be trained: its logits have no gradient with respect to its weights; "
                      "leave out what cuts it, as no_grad or detach, or pass another architecture")
    if not models.is_torchvision(name) and is_rank_0():  # nobody else writes files
        _check_checkpoint(f"{flag} {name}", model, x)
    return model


def check_compile(device) -> None:
    """Refuse --compile where torch.compile does not find what it needs."""
    with refuse_errors(f"--compile: torch.compile does not work on {device} here", "install what it lacks (a C++ "
                       "compiler on a CPU, Triton on a GPU), or leave --compile out"):
        torch.compile(lambda x: (2 * x).sum())(torch.ones(2, device=device))


def check_single_images(what: str, model) -> None:
    """Refuse steps of one image for a model that normalises 1 x 1 activations over the batch."""
    model = copy.deepcopy(model).train()
    try:
        model(_images(model)[:1])
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise Refusal(f"--batch-size 1: BatchNorm in {what} has activations of 1 x 1 at {model.size} pixels and "
                          "cannot normalise a single image; pass --batch-size 2 or more") from error


def require_two_passes(what: str, model) -> None:
    """Refuse a model that cannot pass clean images, then triggers, before one backward pass, as `what` does."""
    with refuse_errors(f"{what} passes clean images and triggers before one backward pass, which a {model.name} does "
                       "not allow", "let it clone what it changes in place, or pass --bn-stats shared"):
        x = _images(model.train())
        (_loss(model(x)) + _loss(model(x))).backward()


def require_gradient_of_images(what: str, model) -> None:
    """Refuse a model whose logits have no gradient with respect to the images, which `what` moves along it."""
    x = _images(model).requires_grad_()
    logits = model(x)
    if logits.requires_grad and torch.autograd.grad(logits.sum(), x, allow_unused=True)[0] is not None:
        return
    raise Refusal(f"{what} moves images along the gradient of the logits, and in a {model.name} these have none with "
                  "respect to the images; leave out what cuts it, as no_grad or detach, or pass another architecture")


def _check_checkpoint(what: str, model, x) -> None:
    with refuse_errors(f"{what} cannot be saved and read again", "let its parameters and buffers be plain tensors",
                       (OSError,)):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save_checkpoint(path := Path(folder) / "trial.pt", pack_checkpoint(model))
            again = restore_model(read_tensors(path), "its checkpoint", x.device)
            said, said_again, read = (of(x) for of in (model.eval(), model, again))
    if torch.equal(said, said_again) and not torch.allclose(said, read, 1e-3, 1e-3):
        raise Refusal(f"{what} answers otherwise when it is read from its checkpoint: it keeps tensors that are in no "
                      "state dict; make them parameters or buffers (register_buffer)")


def _loss(logits):
    return F.cross_entropy(logits.float(), torch.zeros_like(logits[:, 0], dtype=torch.long))


def _images(model):
    """Two images in [0, 1] as a model takes them; torch's own random numbers stay as they are."""
    x = torch.rand(2, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    return x.to(next(model.parameters()).device)
