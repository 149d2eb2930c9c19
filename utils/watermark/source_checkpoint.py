"""What a source's checkpoints and its report say of it."""

from collections.abc import Callable
from typing import NamedTuple

from utils.runs.checkpoints import pack_checkpoint
from utils.watermark.trigger_files import pack_triggers


class SourceFacts(NamedTuple):
    """What was trained, and how: the settings that a checkpoint or a summary repeats.

    `keeps_clean` says whether each checkpoint has a twin with clean BatchNorm statistics; `makes_triggers_later`
    whether the trigger set is made during the training, so that the final one is in the run folder.
    """

    model_type: str
    width: int
    dataset: str
    classes: list
    train_size: int
    train_type: str
    label_strategy: str
    bn_stats: str
    seed: int
    select: str
    keeps_clean: bool
    makes_triggers_later: bool


class SourceSnapshot(NamedTuple):
    """`snapshot(model, epoch, row)`: the checkpoint of a source, with the triggers that `triggers()` gives."""

    facts: SourceFacts
    triggers: Callable

    def __call__(self, model, epoch: int, row: dict) -> dict:
        names = ("classes", "dataset", "train_size", "train_type", "label_strategy", "seed")
        about = {name: getattr(self.facts, name) for name in names}
        return pack_checkpoint(model, self.facts.model_type, epoch=epoch, figures=row, about=about,
                               **pack_triggers(self.triggers()))
