"""Networks from outside, tried before anything is made.

A network of `models.NAMES` is known. Another is built, asked about images, trained for a step, saved and read again, so
that what it cannot do is refused in a sentence.
"""

import argparse
import contextlib
import copy
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import models
from utils.runs.checkpoints import pack_checkpoint, restore_model, save_checkpoint
from utils.system.files import read_tensors
from utils.system.machine import autocast
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


def check_training(flag: str, name: str, classes: int, size: int, width: int, device="cpu", amp=None,
                   deterministic: bool = False, batch_size: int = 2, compile: bool = False):
    """Refuse what `check_architecture` refuses, and a network that cannot be trained on `device`, saved and read again.

    flag                the flag that named it, for the message
    amp                 bf16 or fp16 of autocast, None: full precision
    deterministic       whether the training passes without kernels whose results vary
    batch_size          images of a step; BatchNorm cannot normalise one image whose activations are 1 x 1
    compile             whether torch.compile has to find a compiler

    Returns the model of the trial, or None for one of `models.NAMES`, which are tried with a batch of one image alone.
    """
    check_architecture(flag, name, classes, size, width)
    if compile:
        _check_compiler(device)
    if batch_size == 1:
        check_single_images(f"{flag} {name}", models.build(name, classes, width=width, size=size))
    if name in models.NAMES:
        return None
    x = _images(size, device)
    try:
        model = models.place(models.build(name, classes, size=size), device).train()
        with _deterministic(deterministic):
            with autocast(x.device.type, amp):
                logits = model(x)
            require_logits(f"{flag} {name} gives no logits in train mode", logits, classes)
            if logits.requires_grad:
                _loss(logits).backward()
    except Refusal:
        raise
    except (Exception, SystemExit) as error:  # the network may raise anything
        how = f"on {device}{' with --amp' if amp else ''}{' with --deterministic' if deterministic else ''}"
        raise Refusal(f"{flag} {name} cannot be trained {how} ({models.describe_error(error)}); mend its train mode, "
                      "or pass another architecture") from error
    if all(p.grad is None for p in model.parameters()):
        raise Refusal(f"{flag} {name} cannot be trained: its logits have no gradient with respect to its weights; "
                      "leave out what cuts it, as no_grad or detach, or pass another architecture")
    if not models.is_torchvision(name):
        _check_checkpoint(f"{flag} {name}", model, x)
    return model


def _check_compiler(device) -> None:
    """Refuse --compile where torch.compile does not work, as without a C++ compiler or Triton."""
    try:
        torch.compile(lambda x: (2 * x).sum())(torch.ones(2, device=device))
    except Exception as error:  # its backends raise many kinds
        raise Refusal(f"--compile: torch.compile does not work on {device} here ({models.describe_error(error)}); "
                      "install what it lacks (a C++ compiler on a CPU, Triton on a GPU), or leave --compile out"
                      ) from error


def check_single_images(what: str, model) -> None:
    """Refuse steps of one image for a model that normalises 1 x 1 activations over the batch."""
    model = copy.deepcopy(model).train()
    try:
        model(_images(model.size, next(model.parameters()).device)[:1])
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise Refusal(f"--batch-size 1: BatchNorm in {what} has activations of 1 x 1 at {model.size} pixels and "
                          "cannot normalise a single image; pass --batch-size 2 or more") from error


def require_two_passes(what: str, model) -> None:
    """Refuse a model that cannot be passed twice before one backward pass, as `what` passes clean images and triggers.
    """
    x = _images(model.size, next(model.parameters()).device)
    try:
        model.train()
        (_loss(model(x)) + _loss(model(x))).backward()
    except (Exception, SystemExit) as error:  # the network may raise anything
        raise Refusal(f"{what} passes clean images and triggers before one backward pass, which a {model.name} does "
                      f"not allow ({models.describe_error(error)}); let it clone what it changes in place, or pass "
                      "--bn-stats shared") from error


def require_gradient_of_images(what: str, model) -> None:
    """Refuse a model whose logits have no gradient with respect to the images, which `what` moves along it."""
    x = _images(model.size, next(model.parameters()).device).requires_grad_()
    logits = model(x)
    if logits.requires_grad and torch.autograd.grad(logits.sum(), x, allow_unused=True)[0] is not None:
        return
    raise Refusal(f"{what} moves images along the gradient of the logits, and in a {model.name} these have none with "
                  "respect to the images; leave out what cuts it, as no_grad or detach, or pass another architecture")


def _check_checkpoint(what: str, model, x) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder) / "trial.pt", pack_checkpoint(model, model.name))
            checkpoint = read_tensors(Path(folder) / "trial.pt")
        again = restore_model(checkpoint, "its checkpoint", x.device)
        with torch.no_grad():
            said, said_again, read = (of(x) for of in (model.eval(), model, again))
    except OSError:
        raise
    except (Exception, SystemExit) as error:  # the network may raise anything
        raise Refusal(f"{what} cannot be saved and read again ({models.describe_error(error)}); let its parameters and "
                      "buffers be plain tensors") from error
    if torch.equal(said, said_again) and not torch.allclose(said, read, 1e-3, 1e-3):
        raise Refusal(f"{what} answers otherwise when it is read from its checkpoint: it keeps tensors that are in no "
                      "state dict; make them parameters or buffers (register_buffer)")


@contextlib.contextmanager
def _deterministic(wanted: bool):
    """Within: torch refuses kernels whose results vary, if `wanted`."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first use of cuBLAS
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _loss(logits):
    return F.cross_entropy(logits.float(), torch.zeros_like(logits[:, 0], dtype=torch.long))


def _images(size: int, device):
    """Two images (2, 3, size, size) in [0, 1]; torch's own random numbers stay as they are."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

