"""Extract a surrogate from a watermarked source: `python extraction.py -at soft -dmt res34 -tmt res34 -nq 100`."""

from functools import partial
from pathlib import Path

import utils  # noqa: F401  before torch, see there
import models
from utils.attacks.editing import REMOVALS, channel_activations, check_edit, edited_models, fine_tune, pruning_masks
from utils.attacks.stealing import ExtractionObjective, check_thief_data, extraction_loss, report_surrogate
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.flags import READ_BY, extraction_flags, source_folder
from utils.ownership.results import TriggerTests, hashes_of_source
from utils.rivals.ewe import constant_rate, ewe_adam
from utils.runs.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    model_width,
    pack_checkpoint,
    read_model,
    run_settings,
)
from utils.runs.folder import RunFolder, finish_run
from utils.runs.networks import check_training, require_gradient_of_images
from utils.system.files import read_json, sha256_of_file
from utils.system.machine import AMP, choose_device, is_rank_0, prepare_torch
from utils.system.refusals import Refusal, refuse_in_one_sentence
from utils.training.loop import fit
from utils.training.metrics import accuracies, accuracy
from utils.training.ranks import synchronize_batchnorm
from utils.training.speed import autocast_forward
from utils.watermark.margin import ascend
from utils.watermark.trigger_files import unpack_source
from utils.watermark.triggers import labels_are_uniform, validation_images

MOST_GENERATIONS = 20  # a copy of the source is of generation 1, one made --on it of 2, ...


@refuse_in_one_sentence
def main():
    steal(extraction_flags(), "extraction")


def steal(flags, word: str) -> None:
    """Carry out the attack that flags of extraction.py or distill.py describe; `word` begins its folder's name.

    What can be refused without the images is refused before they are decoded, since a folder of them then gets a
    decoded copy. Validation and test images are those of the source's data set.
    """
    device = choose_device(flags.device, flags.deterministic, flags.tf32)
    folder = source_folder(flags, flags.teacher_model_type)
    path = find_checkpoint(folder, flags.select, flags.teacher_bn)
    checkpoint = load_checkpoint(path)
    source_sha256 = sha256_of_file(path)  # at once: a source that is still trained replaces its checkpoints
    source, triggers = unpack_source(checkpoint, path, device)
    check_source(flags, checkpoint, source, triggers, path)
    flags.image_size = None if source.size == models.SIZE else source.size
    start, start_file, start_summary = None, None, {}  # of an attack of `REMOVALS`: what it edits
    if flags.attack in REMOVALS:
        start, start_file, start_summary = starting_model(flags, source, folder, device)
        check_edit(flags, start)
        flags.width = model_width(start)
    else:
        same_kind = models.is_own(source) and flags.model_type in models.NAMES
        flags.width = flags.width or (model_width(source) if same_kind else 64)
        check_surrogate(flags, source, device)
    about = checkpoint.get("about", {})
    tests = TriggerTests(triggers, source.num_classes, labels_are_uniform(about.get("label_strategy", "random")),
                         flags.benign, device, about.get("classes"))
    own, home = load_both(flags, about)
    trains = flags.attack not in ("prune", "quantize")
    check_thief_data(own, home, about, source.num_classes, needs_labels(flags), flags.batch_size if trains else 0)

    name = f"{flags.attack} {flags.finetune}" if flags.attack in ("finetune", "fineprune") else flags.attack
    model_type = flags.model_type if start is None else start.name
    made = {"dataset": home.name, "dataset_source": own.name, "model": model_type, "width": flags.width,
            "attack": name, "source": folder.name, "source_sha256": source_sha256, "seed": flags.seed,
            "generation": start_summary.get("generation", 0) + 1}
    record = vars(flags) | {"attack": name, "source_sha256": source_sha256, "data_sha256": home.sha256,
                            "data_source_sha256": own.sha256}
    if start_file:
        record["on_sha256"] = sha256_of_file(start_file)
    if start is not None:
        record.pop("width")  # the start model's
    run = RunFolder(folder / f"{word}{flags.additional_message}", record, "another -admsg")
    run.check(flags.overwrite, {"--on": start_file})
    run.open(device, flags.overwrite)
    log_what_is_stolen(flags, run, folder, checkpoint, path, own, is_all=own is home and not flags.train_size)
    if not trains:
        report_edited(flags, run, made, start, own.train.images, tests, home.test)
        return
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
    else:
        train_surrogate(flags, run, made, source, start, triggers, own, home, device)
    if is_rank_0():
        made |= {"teacher_bn": start_summary.get("teacher_bn", flags.teacher_bn), "epochs": flags.epoch,
                 "select": flags.select}
        report_surrogate(run, made, tests, home.test, device, folder)


def check_source(flags, checkpoint: dict, source, triggers, path) -> None:
    """Refuse a source that is not the one the flags describe."""
    kind, about = checkpoint["model"]["type"], checkpoint.get("about", {})
    if kind != flags.teacher_model_type:
        raise Refusal(f"-tmt {flags.teacher_model_type}: {path} holds a {kind}; pass -tmt {kind}")
    if about.get("train_type", flags.train_type) != flags.train_type:
        raise Refusal(f"-tt {flags.train_type}: {path} was trained with -tt {about['train_type']}; pass that")
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    if not isinstance(about.get("train_size"), int | None):
        raise Refusal(f"{path} does not say how many images it was trained on: name another run of train.py")
    if flags.image_size not in (None, source.size):
        raise Refusal(f"the source was trained on images of {source.size} pixels: pass --image-size {source.size}")


def starting_model(flags, source, folder, device):
    """The frozen model that an attack of `REMOVALS` edits, and, of --on, its file and its summary; else None and {}."""
    path, made = earlier_copy(folder, flags.on, flags.select) if flags.on else (None, {})
    model = read_model(path, device) if path else source
    if flags.model_type not in ("", model.name):
        raise Refusal(f"-dmt {flags.model_type}: -at {flags.attack} keeps the architecture, a {model.name}; "
                      "leave -dmt out")
    return model, path, made


def earlier_copy(folder, on: str, select: str):
    """The checkpoint and the summary, with its "generation", of a finished attack on the source in `folder`."""
    path = find_checkpoint(folder / on, select)
    made = read_json(path.parents[1] / "summary.json")
    if not made:
        raise Refusal(f"--on {on} is not finished: give its own command again, and it goes on")
    if made.get("source_sha256") not in hashes_of_source(folder):
        raise Refusal(f"--on {on} is a copy of an earlier training of its source: make it anew by its own command and "
                      "--overwrite")
    if not isinstance(made.get("generation"), int) or not 0 < made["generation"] < MOST_GENERATIONS:
        raise Refusal(f"--on {on}: its summary.json is damaged, or it is one of more than {MOST_GENERATIONS} copies, "
                      "each from the last: name another copy")
    return path, made


def check_surrogate(flags, source, device) -> None:
    """Refuse an architecture that cannot be trained on the source's answers, or moved by the attack's ascent."""
    trial = check_training("-dmt", flags.model_type, source.num_classes, source.size, flags.width, device,
                           AMP.get(flags.amp), flags.deterministic, flags.batch_size, flags.compile)
    moved_by = {"margin": source, "adversarial": trial}.get(flags.attack)
    if moved_by is not None:
        require_gradient_of_images(f"-at {flags.attack}", moved_by)


def load_both(flags, about: dict):
    """The thief's and the source's data; where they are one set, he gets as many images as the source had (`about`)."""
    more = {"skip_bad_images": flags.skip_bad_images, "image_size": flags.image_size}
    folders = {Path(folder).resolve() for folder in (flags.data_dir_source, flags.data_dir)}
    same = flags.dataset_source == flags.dataset and (flags.dataset == "digits" or len(folders) == 1)
    count = flags.train_size or (about.get("train_size") if same else None)
    own = load_data(flags.dataset_source, flags.data_dir_source, train_size=count,
                    flag="-dt" if same else "-dsrc", **more)
    return own, own if same else load_data(flags.dataset, flags.data_dir, **more)


def needs_labels(flags) -> bool:
    """Whether the attack trains on true labels in the source's classes."""
    if flags.attack in REMOVALS:
        return flags.attack in ("finetune", "fineprune") and flags.finetune != "shift"
    return extraction_loss(flags)[1]


def log_what_is_stolen(flags, run, folder, checkpoint: dict, path, own, is_all: bool) -> None:
    """Say what is unusual of the source and of the thief's images; `is_all` means that he has all of the source's."""
    settings = run_settings(path)
    if not getattr(flags, "on", "") and settings.get("select") not in (None, flags.select):
        run.log(f"this steals the checkpoint of --select {flags.select}; the source's own figures are of "
                f"{settings['select']}")
    if run.finished:
        return
    run.log(*own.notes)
    if settings and not (folder / "summary.json").exists():
        epoch = checkpoint["epoch"] + 1 if isinstance(checkpoint.get("epoch"), int) else "unknown"
        run.log(f"warning: the source is not finished; its chosen epoch so far is {epoch}")
    if is_all and settings.get("data_sha256") not in (None, own.sha256):
        run.log("warning: these are not the images that the source was trained on, or not in its order")


def train_surrogate(flags, run, made: dict, source, start, triggers, own, home, device) -> None:
    """Train a surrogate of `source`, or a copy of `start`, on the thief's images `own`, or go on."""
    amp = AMP.get(flags.amp)
    # each generation has seeds of its own (2^31, 2^31 + 2^30, ... above --seed; torch's generator reads 32 bits):
    # a copy begins neither from the weights nor with the batches of what it copies
    seed = flags.seed + 2**32 - 2 ** (32 - made["generation"])
    kept = {}
    if flags.attack == "fineprune":
        kept = pruning_masks(start, flags.ratio, flags.criterion, activations_of(flags, start, own.train.images))
    prepare_torch(seed, flags.deterministic)
    if start is not None:
        model, objective = fine_tune(start, flags.finetune, kept)
    else:  # normalised by the thief's data; the source is frozen
        model = models.build(flags.model_type, source.num_classes, own.mean, own.std, flags.width, home.size)
        model = synchronize_batchnorm(models.place(model, device))
        objective = objective_of_flags(flags, autocast_forward(source, amp, flags.compile))
    if flags.adam:
        objective.optimizer, objective.rate = ewe_adam, constant_rate
        objective.static = False  # Adam's count of steps has not been tried in a recording
    batches = Batches(own.train, flags.batch_size, own.mirrors(flags, run.log), device, crop=not flags.no_crop)
    about = {"classes": home.classes, "dataset": home.name, "attack": made["attack"], "seed": flags.seed}
    snapshot = lambda model, epoch, row: pack_checkpoint(model, epoch=epoch, figures=row, about=about)
    validation = validation_images(home, triggers)
    evaluate = lambda model: accuracies(model, amp, val=validation, trigger=triggers)
    fit(run, model, objective, batches, evaluate, snapshot, epochs=flags.epoch, lr=flags.adam or flags.lr,
        weight_decay=flags.weight_decay, seed=seed, amp=amp, compile=flags.compile, graph=flags.graph)


def objective_of_flags(flags, answers) -> ExtractionObjective:
    """Eq. 2, 5 or 6 on a source's `answers`, pixels -> logits; Eq. 7 or adversarial training by an ascent besides."""
    ascent = None
    if flags.attack in READ_BY["steps"]:
        ascent = partial(ascend, steps=flags.steps, step_size=flags.step_size / 255, eps=flags.eps / 255)
    return ExtractionObjective(answers, *extraction_loss(flags), ascent, flags.attack == "adversarial")


def activations_of(flags, start, images):
    """Mean activations of the channels of `start`, where the attack prunes by them, else None."""
    prunes = flags.attack in ("prune", "fineprune") and flags.criterion == "activation"
    return channel_activations(start, images) if prunes else None


def report_edited(flags, run, made: dict, start, images, tests: TriggerTests, test) -> None:
    """Edit copies of `start`, one for each strength, print their table and write the summary.

    `images` are the thief's, uint8 (N, 3, S, S); `test` the source's test images and labels.
    """
    of, amp, active = flags.on or "source", AMP.get(flags.amp), activations_of(flags, start, images)

    def row(title, model, **strength):
        return strength | tests.row(title, tests.logits_of(model), accuracy(model, test.images, test.labels, amp))

    before = row(of, start)
    rows = [row(f"{of}, {title}", model, **strength) for title, strength, model in edited_models(flags, start, active)]
    summary = {"role": "edited", **made, "on": of, **{k: v for k, v in before.items() if k != "model"}, "clean": None}
    if flags.attack == "prune":
        summary["criterion"] = flags.criterion
    finish_run(run, summary, [*rows, before, *tests.benign_rows()])


if __name__ == "__main__":
    main()
