"""Weights on disk under any common names: of `--init FILE`, of a clean model that labels triggers, of a suspect."""

from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

import models
from utils.runs.checkpoints import (
    check_benign,
    find_checkpoint,
    load_checkpoint,
    load_typed,
    read_other,
    restore_model,
)
from utils.runs.networks import check_architecture
from utils.system.files import CHECKPOINT_LIMIT, TEXT_LIMIT, sha256_of_file, wrong_kind
from utils.system.refusals import Refusal
from utils.system.tensors import ALLOWED_DTYPES

MAY_BE_ABSENT = ("0.mu", "0.std")  # our normalisation, which stays that of the training images
# classifiers beside the one of googlenet and inception_v3, which torchvision's files hold and which we do not build
AUXILIARY = ("1.aux1.", "1.aux2.", "1.AuxLogits.")
# keys under which checkpoints keep weights
HOLDERS = ("model", "state_dict", "model_state_dict", "net", "network", "weights", "params", "module", "model_ema",
           "state_dict_ema", "ema_state_dict", "ema", "current_model_state")
CLASS_NAMES = ("class_to_idx", "idx_to_class", "classes", "class_names")  # keys of other programs
WRAPPERS = ("module", "_orig_mod")  # parts of names that DataParallel, SWA and torch.compile add
# in the names of the parts into which torch can split a weight -> the function that joins them again
PARTS = {"weight_mask": "torch.nn.utils.prune.remove", "weight_g": "torch.nn.utils.remove_weight_norm",
         "weight_u": "torch.nn.utils.remove_spectral_norm",
         "parametrizations.weight.": "torch.nn.utils.parametrize.remove_parametrizations"}
COPIES = 5  # copies of a network in one file, at most, among which the first is looked for
SWA_COUNTER = "n_averaged"
OTHER_WAY = ("name by -mt what the file is of; if that takes images of another size, export the triggers, ask it "
             "yourself, and pass --predictions")


class InitialWeights(NamedTuple):
    """Weights of a file, which `flag` named."""

    path: str
    tensors: dict
    sha256: str
    flag: str
    about: dict  # what the file says of its classes, see `class_names`

    def check(self, model_type: str, classes: int, width: int, size: int = models.SIZE) -> None:
        """Refuse weights that do not fit a model of `models.build`; makes nothing, see `load_into`."""
        with torch.device("cpu" if model_type in models.named else "meta"):
            self._fitting(models.build(model_type, classes, width=width, size=size))

    def load_into(self, model: nn.Module, log=lambda text: None, same_classes: bool = False) -> int | None:
        """Put them into a model of `models.build`; `log` takes a sentence that says which file it was.

        A last layer for another number of classes stays new, or is refused if `same_classes`. Returns the file's class
        count then, else None. Raises Refusal where a weight is missing, unknown, of another shape or not finite.
        """
        given, old_classes = self._fitting(model)
        if same_classes and old_classes:
            way = ("; if it has more, --columns FILE names them all; if one is lacking, export the triggers, ask it "
                   "yourself, and pass its labels by name as --predictions") if self.flag == "--suspect" else ""
            raise Refusal(f"{self.flag} {self.path} answers with {old_classes} classes, not {model.num_classes}{way}")
        model.load_state_dict(given, strict=False)
        head = f"; its last layer tells {old_classes} classes apart, so a new one is trained" if old_classes else ""
        log(f"starting from the weights in {self.path} (SHA-256 {self.sha256[:16]}...){head}")
        return old_classes

    def _fitting(self, model) -> tuple[dict, int | None]:
        """The weights under the model's names and, where their last layer is left out for it, its class count."""
        own, trained, file = model.state_dict(), models.trained_tensors(model), f"{self.flag} {self.path}"
        given = _under_names_of(own, self.tensors, file)
        head, old_classes = _head_of_other_classes(model, given)
        given = {name: t for name, t in given.items()
                 if name not in head and (name in own or not name.startswith(AUXILIARY))}
        # old files lack the counters of batches, which nothing here uses
        needed = [name for name in own if name not in (*head, *MAY_BE_ABSENT) and not name.endswith(models.COUNTER)]
        own_flags = "-mt and --width" if self.flag == "--init" else "-mt"  # elsewhere the width is the file's
        way = f"pass the {own_flags} that its model was built with"
        if undo := [undo for part, undo in PARTS.items() if any(part in name for name in given if name not in own)]:
            way = f"weights are saved in parts: put them together by {undo[0]} before saving"
        for name, tensor in given.items():
            if name not in own:
                if set(needed) <= given.keys():
                    way = "its own weights are all there: write the file without that if it is no part of the network"
                raise Refusal(f"{file}: the model has no {name}; {way}")
            if tensor.shape != own[name].shape:
                raise Refusal(f"{file}: {name} has the shape {tuple(tensor.shape)}, the model's has "
                              f"{tuple(own[name].shape)}; {way}")
            if tensor.dtype not in ALLOWED_DTYPES:
                raise Refusal(f"{file}: {name} holds {tensor.dtype} numbers; save it as float32")
            if name in trained and not tensor.isfinite().all():
                raise Refusal(f"{file}: {name} is not finite; name a file of a training that ended well")
        if absent := [name for name in needed if name not in given]:
            raise Refusal(f"{file} lacks {absent[0]}{', ...' if len(absent) > 1 else ''}; {way}")
        return given, old_classes


def read_initial_weights(path, flag: str = "--init") -> InitialWeights:
    """Read a state dict, a checkpoint, a .safetensors file or a run folder.

    Read as data, see `read_tensors`. Raises Refusal, which names `flag`, where it is missing, damaged, or holds none.
    """
    if not Path(path).exists():
        raise Refusal(f"{flag} {path} does not exist; name a file of weights or the folder of a run")
    file = find_checkpoint(path)
    found = _read_safetensors(file, flag) if file.suffix == ".safetensors" else load_checkpoint(file)
    weights = _state_dict_in(found, f"{flag} {path}")
    if weights is None:
        keys = ", ".join(str(key)[:40] for key in list(found)[:5])
        raise Refusal(f"{flag} {path} holds no state dict: its entries are {keys or 'none'}, and weights are looked "
                      f"for under {', '.join(HOLDERS[:4])} and the like; write them alone, "
                      "torch.save(model.state_dict(), FILE)")
    return InitialWeights(str(path), weights, sha256_of_file(file), flag,
                          {key: found[key] for key in ("about", *CLASS_NAMES) if key in found})


def _state_dict_in(found, where: str) -> dict | None:
    """The tensors by their names in a checkpoint of this project, of the official code or of many others."""
    if not isinstance(found, dict):
        return None
    if found and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()):
        return {name: tensor for name, tensor in found.items() if name != SWA_COUNTER}
    inner = [weights for key in HOLDERS if (weights := _state_dict_in(found.get(key), where)) is not None]
    if not inner:
        return None
    bare = [_without_wrappers(weights) for weights in inner]
    _refuse_unequal(bare, [name for name in bare[0] if not name.endswith(models.COUNTER)], where)
    return inner[0]


def _without_wrappers(tensors: dict) -> dict:
    """The tensors without what `WRAPPERS` put between the parts of their names."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): t for name, t in tensors.items()}


def _refuse_unequal(given: list[dict], names: list[str], where: str) -> None:
    """Refusal where those that have all `names`, as weights and their average, differ: nobody says which is meant."""
    first, *others = [tensors for tensors in given if tensors.keys() >= set(names)] or [{}]
    if any(other[n] is not first[n] and not torch.equal(other[n], first[n]) for other in others for n in names):
        raise Refusal(f"{where} holds more than one network, as weights and their average: write the one that is meant "
                      "alone, torch.save(model.state_dict(), FILE)")


def class_names(found: dict, count: int) -> list[str] | None:
    """The names of `count` classes in the order of a checkpoint, of this project or of another program, that says them.

    A list, or a dict from names to numbers or the reverse; None where there is none for each class.
    """
    if isinstance(about := found.get("about"), dict) and isinstance(about.get("classes"), list):
        return list(map(str, about["classes"]))
    for given in map(found.get, CLASS_NAMES):
        given = dict(enumerate(given)) if isinstance(given, list) else given
        if isinstance(given, dict) and len(given) == count:
            if all(type(i) is int for i in given.values()):
                given = {i: name for name, i in given.items()}
            named = {str(i): name for i, name in given.items()}
            names = [named.get(str(i)) for i in range(count)]
            if all(isinstance(name, str) for name in names):
                return names
    return None


def _read_safetensors(path: Path, flag: str) -> dict:
    if path.stat().st_size > CHECKPOINT_LIMIT:
        raise Refusal(f"{flag} {path} is larger than {CHECKPOINT_LIMIT} bytes, the most that is read of weights")
    if why := wrong_kind(path, [(rb"PK\x03\x04", "a file of torch.save: give it the ending .pt")]):
        raise Refusal(f"{flag} {path} is no .safetensors file that can be read: {why}")
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > TEXT_LIMIT:
            raise Refusal(f"{flag} {path} is no .safetensors file that can be read (its header is too long)")
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise Refusal(f"{flag} {path} is no .safetensors file that can be read ({error})") from error


def _under_names_of(own: dict, tensors: dict, where: str) -> dict:
    """The tensors under the model's names, which have "1." before the network's own.

    Without what wrappers put before or between the names: DataParallel, SWA, torch.compile, and classes around the
    network, as Lightning's, whatever they call it. Of equal copies of the network the first is taken.
    """
    bare, names = _without_wrappers(tensors), [name.removeprefix("1.") for name in own if name.startswith("1.")]
    found = [tensors, bare]
    for given in (tensors, bare):
        before = [name.removesuffix(names[0]) for name in given if f".{name}".endswith(f".{names[0]}")]
        before = [prefix for prefix in before if prefix + names[-1] in given][:COPIES]
        for prefix in dict.fromkeys(["", *before]):
            outer = prefix[:-2] if f".{prefix}".endswith(".1.") else prefix  # of a whole model: beside "1." stands "0."
            others = tuple(other for other in before if other not in ("", prefix))
            found.append({f"{'1.' if outer == prefix else ''}{name[len(outer):]}" if name.startswith(outer) else name: t
                          for name, t in given.items() if name.startswith(outer) or not name.startswith(others)})
    _refuse_unequal(found, [f"1.{name}" for name in names if not name.endswith(models.COUNTER)], where)
    return max(found, key=lambda named: len(named.keys() & own.keys()))


def _head_of_other_classes(model, given: dict):
    """(Names of the weights of the layer that makes the logits, the file's class count); (), None if it is the model's.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    linear, own = models.last_linear(model), model.state_dict()
    # the last linear layer, or the last convolution where no linear layer follows it, as in a SqueezeNet
    for layer in ([linear[0]] if linear else []) + layers[-1:]:
        wanted, weight = own.get(f"{layer}.weight"), given.get(f"{layer}.weight")
        if wanted is None or weight is None or weight.dim() != wanted.dim():
            continue
        if len(wanted) == model.num_classes != len(weight):
            return (f"{layer}.weight", f"{layer}.bias"), len(weight)
    return (), None


class MeanOf(nn.Module):
    """Images (N, 3, S, S) -> logits (N, C), the mean of the models' log probabilities.

    So the log odds of two classes are the mean of the models' log odds, the best guess for one more such model.
    """

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x):
        return torch.stack([model(x).log_softmax(1) for model in self.models]).mean(dim=0)


def read_label_model(flags, data, device="cpu"):
    """The model of --label-model, frozen, or the `MeanOf` several; features are those of the last one."""
    clean = [_label_model(name, flags, data, device) for name in flags.label_model]
    return MeanOf(clean).eval() if len(clean) > 1 else clean[0]


def _label_model(name, flags, data, device):
    """The frozen model of a run, a checkpoint, or plain weights of the -mt."""
    file = find_checkpoint(name)
    if checkpoint := load_typed(file):
        return read_other("--label-model", name, (len(data.classes), data.size), device, data.classes, checkpoint)
    weights = read_initial_weights(file, "--label-model")
    if flags.model_type is None:
        raise Refusal(f"--label-model {file} holds plain weights, which do not say what they are of: name their "
                      "architecture by -mt")
    model = _model_of(weights, flags.model_type, len(data.classes), data.size, (data.mean, data.std))
    return models.place(model, device)


def read_suspect_model(path, architectures: list[str], classes: int, size: int, mean_std, pixels=None,
                       flag="--suspect"):
    """(model of `flag`, frozen and in eval mode, its `class_names` or None).

    path           a run folder, a checkpoint, a state dict or a .safetensors file
    architectures  names by -mt; a state dict is of the one of them that it fits
    size           pixels that the images are high and wide; Refusal where a checkpoint's model takes another size
    mean_std       normalisation of pixels for a state dict that has none; `pixels` of `check_pixels` replace it
    """
    file = find_checkpoint(path)
    if checkpoint := load_typed(file):
        if flag == "--benign":
            check_benign(checkpoint, path)
        if pixels:
            raise Refusal(f"{flag} {path} normalises its pixels itself: leave out --mean, --std and --scale")
        model = restore_model(checkpoint, file)
        if model.size != size:
            raise Refusal(f"{flag} {path} takes images of {model.size} x {model.size} pixels, the triggers are "
                          f"{size} x {size}: export them, ask it yourself, and pass --predictions")
        return model, class_names(checkpoint, model.num_classes)
    weights, refusals = read_initial_weights(file, flag), []
    if not architectures:
        raise Refusal(f"{flag} {path} is a state dict, which does not say what it is of: name its architecture "
                      "by -mt")
    for name in architectures:
        try:
            model = _model_of(weights, name, classes, size, mean_std)
        except Refusal as refusal:
            refusals.append(refusal)
            continue
        for buffer, values in zip((model[0].mu, model[0].std), pixels or ()):
            buffer.copy_(buffer.new_tensor(values).view_as(buffer))
        return model, class_names(weights.about, classes)
    raise refusals[0]


def _model_of(weights, name: str, classes: int, size: int, mean_std):
    way = "" if weights.flag == "--label-model" else OTHER_WAY
    check_architecture(f"{weights.flag} {weights.path}: -mt", name, classes, size, 64, way)
    width = 64
    if name in models.NAMES:  # channels of the first convolution; `check` says where there is none
        width = next((len(t) for t in weights.tensors.values() if t.dim() == 4 and 0 < len(t) <= 1024), 64)
        weights.check(name, classes, width, size)  # before the model takes memory: a few bytes could ask for much
    model = models.build(name, classes, *mean_std, width=width, size=size)
    weights.load_into(model, same_classes=True)
    return models.place(model.requires_grad_(False).eval(), "cpu")
