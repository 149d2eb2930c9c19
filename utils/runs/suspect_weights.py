"""The model of a suspect whose weights are at hand: a run, a checkpoint, or a state dict of a named architecture."""

import models
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, restore_model
from utils.runs.initial_weights import read_initial_weights
from utils.runs.networks import check_architecture
from utils.system.refusals import Refusal

WAY = ("name by -mt what the file is of; if that takes images of another size, export the triggers, ask it yourself, "
       "and pass --predictions")


def read_suspect_model(path, architectures: list[str], classes: int, size: int, mean_std, pixels=None):
    """(model of `--suspect`, frozen and in eval mode, its checkpoint or {}).

    path           a run folder, a checkpoint, a state dict or a .safetensors file
    architectures  names by -mt; a state dict is of the one of them that it fits
    size           pixels that the images are high and wide; Refusal where a checkpoint's model takes another size
    mean_std       normalisation of pixels for a state dict that has none; `pixels` of `check_pixels` replace it
    """
    file = find_checkpoint(path, None)
    checkpoint = {} if file.suffix == ".safetensors" else load_checkpoint(file)
    if isinstance(checkpoint.get("model"), dict) and "type" in checkpoint["model"]:
        if pixels:
            raise Refusal(f"--suspect {path} normalises its pixels itself: leave out --mean, --std and --scale")
        model = restore_model(checkpoint, file)
        if model.size != size:
            raise Refusal(f"--suspect {path} takes images of {model.size} x {model.size} pixels, the triggers are "
                          f"{size} x {size}: export them, ask it yourself, and pass --predictions")
        return model, checkpoint
    weights, refusals = read_initial_weights(file, "--suspect"), []
    if not architectures:
        raise Refusal(f"--suspect {path} is a state dict, which does not say what it is of: name its architecture "
                      "by -mt")
    for name in architectures:
        try:
            model = _model_of(weights, name, classes, size, mean_std)
        except Refusal as refusal:
            refusals.append(refusal)
            continue
        for buffer, values in zip((model[0].mu, model[0].std), pixels or ()):
            buffer.copy_(buffer.new_tensor(values).view_as(buffer))
        return model, {}
    raise refusals[0]


def _model_of(weights, name: str, classes: int, size: int, mean_std):
    """The model of an architecture with the weights of a state dict, frozen and in eval mode."""
    check_architecture(f"--suspect {weights.path}: -mt", name, classes, size, 64, WAY)
    width = 64
    if name in models.NAMES:  # channels of the first convolution; `check` says where there is none
        width = next((len(t) for t in weights.tensors.values() if t.dim() == 4 and 0 < len(t) <= 1024), 64)
        weights.check(name, classes, width, size)  # before the model takes memory: a few bytes could ask for much
    model = models.build(name, classes, *mean_std, width=width, size=size)
    weights.load_into(model, same_classes=True)
    return models.place(model.requires_grad_(False).eval(), "cpu")
