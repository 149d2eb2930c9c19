"""Attacks that start from a model: fine-tuning, pruning with fine-tuning, and sweeps of pruning or quantisation."""

import copy
from dataclasses import dataclass

import models
from utils.attacks.objectives import FINETUNES, FineTuningObjective
from utils.attacks.pruning import channel_activations, check_weights_to_edit, keep_pruned, prune, pruning_masks
from utils.attacks.quantization import quantize
from utils.attacks.surrogate import report_surrogate, train_surrogate
from utils.attacks.theft import Theft, TheftSettings
from utils.runs.checkpoints import find_checkpoint, instead_of_mt, load_checkpoint, model_width
from utils.runs.table import finish_run
from utils.system.machine import is_chief
from utils.system.refusals import Refusal
from utils.training.global_batch import synchronize_batchnorm
from utils.training.metrics import accuracy
from utils.watermark.trigger_files import unpack_source


@dataclass(frozen=True)
class FineTuning:
    """Fine-tune a copy of the source, or of the surrogate `on`, on the thief's labels; `ratio` None: without pruning.

    attack      "finetune" or "fineprune", the value of -at
    variant     one of `FINETUNES`
    criterion   of pruning, see `pruning_masks`
    model_type  the architecture that -dmt names, "" for the model's own
    """

    attack: str
    variant: str
    criterion: str
    ratio: float | None
    on: str
    model_type: str

    needs_labels = True

    @property
    def name(self) -> str:
        """The attack as tables name it."""
        return f"{self.attack} {self.variant}"

    def check(self, settings: TheftSettings, source, device) -> None:
        """Refuse a model with which it cannot be done; makes nothing."""
        start, model_type = starting_model(settings, source, device, self.on, self.model_type, self.attack)
        _check_copy(self.attack, start)
        if any(FINETUNES[self.variant]) and models.last_linear(start) is None:
            raise Refusal(f"--finetune {self.variant}: a {model_type} has no linear layer; pass --finetune ftal")
        if self.ratio is not None:
            check_weights_to_edit(self.attack, start, self.criterion)

    def run(self, theft: Theft) -> None:
        """Train the copy and report."""
        start, model_type = starting_model(theft.settings, theft.source, theft.device, self.on, self.model_type,
                                           self.attack)
        only_last, reset_last = FINETUNES[self.variant]

        def build():
            model = copy.deepcopy(start)
            if reset_last:
                models.last_linear(model)[1].reset_parameters()
            model = synchronize_batchnorm(model)
            objective = FineTuningObjective(model, only_last)
            if self.ratio is not None:
                kept = mask_function(self.criterion, start, theft)(self.ratio)
                prune(model, kept)
                keep_pruned(model, kept)
            return model, objective

        train_surrogate(theft, build, model_type)
        if is_chief():
            report_surrogate(theft, model_type, model_width(start))


@dataclass(frozen=True)
class Sweep:
    """Prune or quantise the source, or the surrogate `on`, in several strengths without training: a row for each.

    attack    "prune" or "quantize"
    criterion, ratios   of pruning, see `pruning_masks`
    bits      of quantisation
    """

    attack: str
    criterion: str
    ratios: tuple
    bits: tuple
    on: str
    model_type: str

    needs_labels = False

    @property
    def name(self) -> str:
        """The attack as tables name it."""
        return self.attack

    def check(self, settings: TheftSettings, source, device) -> None:
        """Refuse a model with which it cannot be done; makes nothing."""
        start, _ = starting_model(settings, source, device, self.on, self.model_type, self.attack)
        check_weights_to_edit(self.attack, start, self.criterion if self.attack == "prune" else "magnitude")
        _check_copy(self.attack, start)

    def run(self, theft: Theft) -> None:
        """Edit and report."""
        start, model_type = starting_model(theft.settings, theft.source, theft.device, self.on, self.model_type,
                                           self.attack)
        theft.run.open(theft.device, theft.settings.output.overwrite)
        test, of = theft.home.test, self.on or "source"

        def row(name, model, **strength):
            test_accuracy = accuracy(model, test.images, test.labels, theft.settings.training.amp)
            return strength | theft.tests.row(name, theft.tests.logits_of(model), test_accuracy)

        before = row(of, start)
        if self.attack == "quantize":
            rows = [row(f"{of}, weights of {b} bits", quantize(copy.deepcopy(start), b), bits=b) for b in self.bits]
        else:
            kept, name = mask_function(self.criterion, start, theft), f"{of}, pruned {{}} by {self.criterion}"
            rows = [row(name.format(r), prune(copy.deepcopy(start), kept(r)), ratio=r) for r in self.ratios]
        figures = {k: v for k, v in before.items() if k != "model"}
        summary = {"role": "edited", "dataset": theft.home.name, "dataset_source": theft.own.name, "model": model_type,
                   "width": model_width(start), "attack": self.attack, "on": of,
                   "source": theft.settings.source.name, "source_sha256": theft.source_sha256,
                   "seed": theft.settings.training.seed, **figures, "clean": None}
        if self.attack == "prune":
            summary["criterion"] = self.criterion
        finish_run(theft.run, summary, [*rows, before, *theft.tests.benign_rows()])


def starting_model(settings: TheftSettings, source, device, on: str, asked: str, attack: str):
    """The model that an editing attack on `source` starts from, frozen, and its architecture's name.

    `on` is the folder of a finished attack below the source's, "" for the source itself; `asked` is the value of -dmt.
    """
    model, kind = source, settings.model_type
    if on:
        path = find_checkpoint(settings.source / on, settings.select)
        checkpoint = load_checkpoint(path)
        with instead_of_mt("add -dmt {} if you trust it"):
            (model, _), kind = unpack_source(checkpoint, path, device), checkpoint["model"]["type"]
    if asked not in ("", kind):
        raise Refusal(f"-dmt {asked}: -at {attack} keeps the architecture, a {kind}; leave -dmt out")
    return model, kind


def _check_copy(attack: str, model) -> None:
    """Refuse a model from outside that cannot be copied, as one with torch's old weight_norm."""
    if models.is_own(model):
        return
    try:
        copy.deepcopy(model)
    except Exception as error:  # a user's network may raise anything
        raise Refusal(f"-at {attack} edits a copy of the model, and a {model.name} cannot be copied "
                      f"({models.describe_error(error)}); mend it, or pass -at soft") from error


def mask_function(criterion: str, model, theft: Theft):
    """ratio -> masks of `prune`; activations are measured once, on the thief's training images."""
    measured = channel_activations(model, theft.own.train.images) if criterion == "activation" else None
    return lambda ratio: pruning_masks(model, ratio, criterion, measured)
