"""Attacks that start from a model: fine-tuning (Table 9), pruning (Fig. 8) and quantisation of its weights."""

import copy
import weakref
from functools import partial

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import models
from utils.attacks.stealing import ExtractionObjective, hard_loss
from utils.runs.checkpoints import model_width, refuse_errors
from utils.runs.networks import check_compile, check_single_images, require_gradient_of_images
from utils.system.refusals import Refusal
from utils.training.loop import PlainObjective
from utils.training.metrics import pass_length, predict
from utils.training.ranks import synchronize_batchnorm

# published fine-tuning attacks -> (train the last layer alone, re-initialise it)
FINETUNES = {"ftal": (False, False), "ftll": (True, False), "rtal": (False, True), "rtll": (True, True),
             "shift": (False, False), "wrk": (False, False)}
REMOVALS = ("finetune", "fineprune", "prune", "quantize")
CRITERIA = ("activation", "magnitude")
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "hardswish", "mish")


def check_edit(flags, model) -> None:
    """Refuse a model with which the attack of `REMOVALS` in `flags` cannot be done, and a --width that is not its own.

    --finetune, --criterion, --compile and --batch-size count where the attack uses them.
    """
    attack, finetune, criterion = flags.attack, flags.finetune, flags.criterion
    if flags.width not in (None, model_width(model)):
        raise Refusal(f"--width {flags.width}: -at {attack} keeps the width, {model_width(model)}; leave it out")
    with refuse_errors(f"-at {attack} edits a copy of the model, and a {model.name} cannot be copied",
                       "mend it, or pass -at soft"):
        copy.deepcopy(model)  # which one with torch's old weight_norm refuses
    trains, prunes = attack in ("finetune", "fineprune"), attack in ("prune", "fineprune")
    if trains and any(FINETUNES[finetune]) and models.last_linear(model) is None:
        raise Refusal(f"--finetune {finetune}: a {model.name} has no linear layer; pass --finetune ftal")
    if prunes and criterion == "activation":
        blank = torch.zeros(2, 3, model.size, model.size, dtype=torch.uint8)
        with refuse_errors(f"-at {attack} --criterion activation asks a {model.name}, which fails",
                           "pass --criterion magnitude"):
            found = channel_activations(model, blank)
        if not found:
            raise Refusal(f"-at {attack} --criterion activation prunes channels between a BatchNorm2d layer with "
                          f"weights and one of {', '.join(ACTIVATIONS)}, and a {model.name} has none: pass --criterion "
                          "magnitude")
    if attack == "quantize" or prunes and criterion == "magnitude":
        found, parameters = layer_weights(model), dict(model.named_parameters())
        if not found or not found.keys() <= parameters.keys():
            why = "computes or shares some of them" if found else "has none"
            raise Refusal(f"-at {attack} edits weights of convolutions and linear layers, and a {model.name} {why}: "
                          "pass -at finetune")
    if trains and flags.compile:
        check_compile(next(model.parameters()).device)
    if trains and finetune == "wrk":
        require_gradient_of_images("--finetune wrk", model)
        if flags.batch_size < 10:  # a fifth of it is moved over the boundary, in a batch of its own
            raise Refusal(f"--finetune wrk --batch-size {flags.batch_size}: a fifth of a batch must be two images or "
                          "more; pass --batch-size 10 or more")
    if trains and flags.batch_size == 1:
        check_single_images(f"a {model.name}", model)


# ---- fine-tuning ----


class FineTuningObjective(PlainObjective):
    """Cross-entropy on the thief's labelled images from a copy of the source (Table 9).

    With `last` only the last layer learns: the rest is frozen, BatchNorm's running statistics included.
    """

    def __init__(self, model, last: bool):
        self.frozen = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if last else []
        head = models.last_linear(model)[0] if last else ""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not last or name.startswith(f"{head}."))

    def __call__(self, forward, x, y, picks):
        for layer in self.frozen:
            layer.eval()
        return super().__call__(forward, x, y, picks)


class BoundaryObjective(FineTuningObjective):
    """WRK (Xiao et al., "Class-feature Watermark", AAAI 2026): fine-tuning that redraws the decision boundary.

    A fifth of each batch is trained once more after a step over the boundary, see `push_over`, under random labels
    that are not their own.
    """

    random_steps = True

    def __call__(self, forward, x, y, picks):
        n = len(x) // 5
        moved, classes = push_over(forward, x[:n])
        others = (y[:n] + torch.randint_like(y[:n], 1, classes)) % classes
        return super().__call__(forward, torch.cat([x, moved]), torch.cat([y, others]), picks)


def push_over(forward, x):
    """(x moved by 0.15 along the sign of the gradient of a random class's logit, kept in [0, 1]; number of classes).

    x (N, 3, H, W) in [0, 1]; the same class for all of a batch, as in the authors' code.
    """
    x = x.detach().requires_grad_()
    logits = forward(x)
    towards = torch.randint(logits.shape[1], (1,), device=x.device)
    (gradient,) = torch.autograd.grad(logits.index_select(1, towards).sum(), x)
    return (x.detach() + 0.15 * gradient.sign()).clamp(0, 1), logits.shape[1]


@torch.no_grad()
def shift_weights(model):
    """Weight shifting (Lukas et al., S&P 2022), w - 1.5 * mean of w over the filters - noise of w's deviation.

    Of each convolution; changes `model` and returns it. The toolbox fine-tunes afterwards on the model's own labels.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            w = module.weight
            w.sub_(1.5 * w.mean(0) + torch.randn_like(w) * w.std())
    return model


def fine_tune(start, finetune: str, kept: dict):
    """(model, objective) of one of `FINETUNES` on a copy of `start`, pruned to the masks `kept`, {} for all of it."""
    only_last, reset_last = FINETUNES[finetune]
    model = copy.deepcopy(start)
    if reset_last:
        models.last_linear(model)[1].reset_parameters()
    if finetune == "shift":
        shift_weights(model)
    model = synchronize_batchnorm(prune(model, kept))
    if finetune == "shift":  # the labels are those that the stolen model gives
        model.requires_grad_(True)
        objective = ExtractionObjective(start, hard_loss, False)
    else:
        objective = (BoundaryObjective if finetune == "wrk" else FineTuningObjective)(model, only_last)
    for name, mask in kept.items():  # what is pruned stays at zero in further training
        if (parameter := model.get_parameter(name)).requires_grad:
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    return model, objective


# ---- pruning ----


def layer_weights(model) -> dict:
    """{name: weight} of each convolution and linear layer."""
    return {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


class _ActivationSums(TorchFunctionMode):
    """Within: adds up what activation functions make of the outputs of BatchNorm layers, `sums`, {layer name: (C,)}."""

    def __init__(self, model):
        super().__init__()
        self.sums, self.answers = {}, {}  # {id of a layer's answer: (layer name, weak reference to it, its version)}
        self.handles = [m.register_forward_hook(partial(self.remember, n)) for n, m in model.named_modules()
                        if isinstance(m, nn.BatchNorm2d) and m.affine]

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        super().__exit__(*error)

    def remember(self, name, module, inputs, output):
        self.answers[id(output)] = name, weakref.ref(output), output._version

    def __torch_function__(self, func, types, args=(), kwargs=None):
        x = args[0] if args else None
        name, answer, version = self.answers.get(id(x), ("", lambda: None, 0))
        # of another version it is no answer any more: something was added to it in place
        is_answer = x is not None and answer() is x and x._version == version
        result = func(*args, **(kwargs or {}))
        if is_answer and func.__name__.rstrip("_") in ACTIVATIONS:
            dtype = torch.float32 if result.device.type == "mps" else torch.float64  # which MPS has not
            self.sums[name] = self.sums.get(name, 0) + result.mean(dim=(2, 3), dtype=dtype).sum(0)
        return result


def channel_activations(model, images) -> dict:
    """Mean activation of each channel over uint8 images (N, 3, S, S): {BatchNorm layer's name: (C,)}.

    Of the layers with weights whose output goes straight into one of `ACTIVATIONS`: what is added to a shortcut first
    is no activation yet.
    """
    with _ActivationSums(model) as counted:
        predict(model, images, pass_length(images, 500))
    return {name: total / len(images) for name, total in counted.sums.items()}


def pruning_masks(model, ratio: float, criterion: str, activation: dict | None = None) -> dict:
    """Masks of what pruning keeps, {parameter name: bool tensor of its shape}; ratio in [0, 1] is the pruned share.

    activation  in each layer of `activation`, of `channel_activations`, the least active channels lose weight and
                bias, which removes them
    magnitude   of all weights of convolutions and linear layers together those of least |w|
    """
    if criterion == "activation":
        masks = {name: _all_but_least(mean, ratio) for name, mean in activation.items()}
        return {f"{name}.{part}": mask for name, mask in masks.items() for part in ("weight", "bias")}
    weights = layer_weights(model)
    mask = _all_but_least(torch.cat([w.detach().abs().flatten() for w in weights.values()]), ratio)
    parts = mask.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts)}


def _all_but_least(values, ratio: float):
    """Bool (n,): False for the round(ratio * n) least values (n,), of equal ones the first."""
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[values.argsort(stable=True)[: round(ratio * len(values))]] = False
    return mask


@torch.no_grad()
def prune(model, kept: dict):
    """Set to zero what the masks leave out; changes `model` and returns it."""
    for name, mask in kept.items():
        model.get_parameter(name).mul_(mask)
    return model


# ---- quantisation ----


@torch.no_grad()
def quantize(model, bits: int):
    """Round weights of convolutions and linear layers to 2^bits - 1 even levels; changes `model` and returns it.

    Symmetric, one scale for each output channel: 2 bits leave -s, 0 and s. Biases and BatchNorm stay as they are.
    """
    levels = 2 ** (bits - 1) - 1
    for weight in layer_weights(model).values():
        scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).clamp_min(1e-12) / levels
        weight.copy_((weight / scale).round() * scale)
    return model


def edited_models(flags, start, activation: dict | None = None):
    """(title, strength, model) for each strength of -at prune or quantize: copies of `start`, without training."""
    for bits in flags.bits if flags.attack == "quantize" else ():
        yield f"weights of {bits} bits", {"bits": bits}, quantize(copy.deepcopy(start), bits)
    for ratio in flags.ratios if flags.attack == "prune" else ():
        kept = pruning_masks(start, ratio, flags.criterion, activation)
        yield f"pruned {ratio} by {flags.criterion}", {"ratio": ratio}, prune(copy.deepcopy(start), kept)
