"""The owner's side of a dispute, read from his run."""

from pathlib import Path
from typing import NamedTuple

from utils.ownership.commitment import neutral_names
from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import read_triggers, unpack_source
from utils.watermark.triggers import TriggerSet


class Owner(NamedTuple):
    """What the owner has.

    folder    of the run; a checkpoint file alone has no commitment, and its folder does not exist
    classes   the classes' names
    names     the neutral file names of the triggers
    mean_std  mean and standard deviation of pixels, 3 numbers each, by which the source normalises
    """

    folder: Path
    triggers: TriggerSet
    classes: list
    names: list
    mean_std: tuple


def read_owner(run) -> Owner:
    """The owner's side of a run, a folder or a checkpoint file.

    Raises Refusal where there is no trigger set or the class names do not fit.
    """
    path = find_checkpoint(run)
    checkpoint = load_checkpoint(path)
    model, triggers = unpack_source(checkpoint, path)
    folder = Path(run) if Path(run).is_dir() else path.parent / "no commitment beside a bare checkpoint"
    about, count = checkpoint.get("about"), model.num_classes
    classes = about.get("classes") if isinstance(about, dict) else None
    classes = [str(i) for i in range(count)] if classes is None else classes
    if not (isinstance(classes, list) and len(set(map(str, classes))) == count == len(classes)):
        raise Refusal(f"{path}: its class names do not fit its {count} classes")
    if (folder / "triggers.pt").exists():
        triggers = read_triggers(folder / "triggers.pt", count)
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    mean_std = model[0].mu.flatten().tolist(), model[0].std.flatten().tolist()
    return Owner(folder, triggers, [str(name) for name in classes], neutral_names(triggers, folder), mean_std)
