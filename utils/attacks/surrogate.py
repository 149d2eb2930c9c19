"""Training a surrogate on the thief's data, and the report at its end."""

from collections.abc import Callable
from dataclasses import dataclass

import models
from utils.attacks.objectives import ExtractionObjective
from utils.attacks.theft import Theft, TheftSettings
from utils.data.batches import Batches
from utils.ownership.results import finished_surrogates, measure_checkpoint, rows_of_run
from utils.runs.checkpoints import class_count, find_checkpoint, instead_of_mt, load_checkpoint, pack_checkpoint
from utils.runs.table import finish_run
from utils.runs.trial import check_training, require_gradient_of_images
from utils.system.machine import is_chief, prepare_torch
from utils.system.refusals import Refusal
from utils.training.global_batch import synchronize_batchnorm
from utils.training.loop import fit
from utils.training.step import autocast_forward
from utils.watermark.evaluation import Evaluation


@dataclass(frozen=True)
class Extraction:
    """Train a surrogate of an architecture and width on the source's answers, from random weights.

    loss                   one of `attacks.losses` with its numbers filled in
    steps, step_size, eps  the ascent of Eq. 7, in pixel units; none with steps = 0
    adam                   constant rate of Adam; None: the paper's SGD
    """

    name: str
    loss: Callable
    needs_labels: bool
    model_type: str
    width: int
    steps: int = 0
    step_size: float = 0.0
    eps: float = 0.0
    adam: float | None = None

    on = ""  # it edits no model

    def check(self, settings: TheftSettings, source, device) -> None:
        """Refuse an architecture or a source with which it cannot be done; makes nothing."""
        training = settings.training
        check_training("-dmt", self.model_type, class_count(source), source.size, self.width, device, training.amp,
                       training.deterministic)
        if self.steps:
            require_gradient_of_images(f"-at {self.name}", source)

    def run(self, theft: Theft) -> None:
        """Train the surrogate and report. It is normalised by its own data; the source is frozen.

        Validation and test images are those of the source's data set.
        """
        training = theft.settings.training

        def build():
            model = models.build(self.model_type, len(theft.home.classes), theft.own.mean, theft.own.std, self.width,
                                 theft.home.size)
            model = synchronize_batchnorm(models.place(model, theft.device))
            source = autocast_forward(theft.source, training.amp, training.compile)
            ascent = self.steps, self.step_size, self.eps
            return model, ExtractionObjective(source, self.loss, self.needs_labels, *ascent, self.adam)

        train_surrogate(theft, build, self.model_type)
        if is_chief():
            report_surrogate(theft, self.model_type, self.width)


def train_surrogate(theft: Theft, build, model_type: str) -> None:
    """Train what `build()` -> (model, objective) gives on the thief's data, unless the run is finished."""
    run, training = theft.run, theft.settings.training
    run.open(theft.device, theft.settings.output.overwrite)
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
        return
    prepare_torch(training.seed, training.deterministic, training.tf32)
    model, objective = build()
    batches = Batches(theft.own.train, training.batch_size, theft.own.flip, theft.device)
    about = {"classes": theft.home.classes, "dataset": theft.home.name, "attack": theft.attack, "seed": training.seed}
    evaluate = Evaluation(theft.validation, lambda: theft.triggers, training.amp)
    snapshot = lambda model, epoch, row: pack_checkpoint(model, model_type, epoch=epoch, figures=row, about=about)
    fit(run, model, objective, batches, evaluate, snapshot, training)


def report_surrogate(theft: Theft, model_type: str, width: int) -> None:
    """Print the table of source and surrogates and write the summary."""
    run, settings, folder = theft.run, theft.settings, theft.settings.source
    best = find_checkpoint(run.path, settings.select)
    summary = {
        "role": "surrogate", "dataset": theft.home.name, "dataset_source": theft.own.name, "model": model_type,
        "width": width, "attack": theft.attack, "teacher_bn": settings.statistics, "source": folder.name,
        "source_sha256": theft.source_sha256, "seed": settings.training.seed, "epochs": settings.training.epochs,
        "select": settings.select, "chosen_epoch": load_checkpoint(best)["epoch"] + 1,
        **measure_checkpoint(best, theft.tests, theft.home.test, theft.device), "clean": None,
    }
    rows = []
    for path in (folder, *sorted({*finished_surrogates(folder), run.path})):
        own, select = path == run.path, settings.select if path == folder else None
        try:
            with instead_of_mt("its row is in a page of `python -m utils.report` with -mt {}"):
                rows += rows_of_run(path, theft.tests, theft.device, select, summary if own else None)
        except Refusal as refusal:  # another run's damage is no reason to lose this one
            if own:
                raise
            run.log(f"left out of the table: {refusal}")
    finish_run(run, summary, rows + theft.tests.benign_rows())
