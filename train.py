"""Train a source model with a secret watermark: `python train.py -dt cifar10 -tt margin -mt res34 -nq 100`."""

from functools import partial

import utils  # noqa: F401  before torch, see there
import models
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.flags import RIVALS, source_folder, train_flags
from utils.ownership.commitment import commit_triggers
from utils.ownership.results import TriggerTests, report_source
from utils.rivals.embedded_features import embed_style
from utils.rivals.randomized_smoothing import append_triggers
from utils.runs.checkpoints import find_checkpoint, pack_checkpoint
from utils.runs.folder import RunFolder
from utils.runs.networks import check_training, require_gradient_of_images, require_two_passes
from utils.runs.weights import read_initial_weights, read_label_model
from utils.system.files import sha256_of_file
from utils.system.machine import AMP, choose_device, is_distributed, is_rank_0, prepare_torch
from utils.system.refusals import Refusal, refuse_in_one_sentence
from utils.training.loop import PlainObjective, fit
from utils.training.metrics import accuracies, accuracy
from utils.training.ranks import synchronize_batchnorm
from utils.watermark.batchnorm import RunningStatistics
from utils.watermark.carriers import carriers_each, last_features, relabel_carriers, require_features
from utils.watermark.margin import ODDS, WatermarkObjective, ascend, effective_weight
from utils.watermark.prepared import read_prepared
from utils.watermark.trigger_files import pack_triggers, read_triggers
from utils.watermark.triggers import labels_are_uniform, triggers_of_flags, validation_images


@refuse_in_one_sentence
def main():
    flags = train_flags()
    device = choose_device(flags.device, flags.deterministic, flags.tf32)
    initial = read_initial_weights(flags.init) if flags.init is not None else None
    data = load_data(flags.dataset, flags.data_dir, train_size=flags.train_size,
                     skip_bad_images=flags.skip_bad_images, image_size=flags.image_size)
    clean = read_label_model(flags, data, device) if flags.label_model else None
    prepared = read_prepared(flags.prepared) if flags.prepared else None
    record = record_of(flags, data, initial, prepared)
    data.train = embed_style(data.train, flags.embed_features, flags.seed)
    run = RunFolder(source_folder(flags, flags.model_type), record, "another -msg")
    run.check(flags.overwrite, {"--init": flags.init, "--label-model": flags.label_model})
    check_method(flags, data, device, initial, clean)

    triggers = choose_triggers(flags, data, clean, prepared)
    tests_of = partial(TriggerTests, classes=len(data.classes), uniform=labels_are_uniform(flags.label_strategy),
                       benign=flags.benign, device=device, names=data.classes)
    tests, before = tests_of(triggers), None
    run.open(device, flags.overwrite)
    kept = run.path / "triggers.pt"
    if clean and kept.exists():  # another device may round otherwise, and draw others
        tests = tests_of(triggers := read_triggers(kept, len(data.classes)))
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
    else:
        run.log(*data.notes)
        prepare_torch(flags.seed, flags.deterministic)
        images = training_images(flags, data, triggers, clean, run.log)
        del clean  # memory of the device
        before = train(flags, run, data, triggers, images, device, initial,
                       opening=prepared.record | {"beacon": flags.beacon} if prepared else None)
    if is_rank_0():
        if made_later(flags):
            tests = tests_of(read_triggers(kept, len(data.classes)))
        report_source(run, flags, tests, data, device, before)


def record_of(flags, data, initial, prepared) -> dict:
    """What the run folder keeps: the flags, and hashes of the files and images that they name."""
    record = vars(flags) | {"data_sha256": data.sha256, "classes_sha256": data.classes_sha256}
    if initial:
        record["init_sha256"] = initial.sha256
    if flags.label_model:
        hashes = [sha256_of_file(find_checkpoint(name)) for name in flags.label_model]
        record["label_model_sha256"] = hashes if len(hashes) > 1 else hashes[0]
        record["label_model"] = flags.label_model if len(hashes) > 1 else flags.label_model[0]
    if prepared:
        record["image_commitment"] = prepared.record["sha256"]
    return record


def check_method(flags, data, device, initial, clean) -> None:
    """Refuse what the method of -tt cannot ask of these data or of the networks; makes nothing."""
    # None for one of `models.NAMES`: no trial
    network = check_training("-mt", flags.model_type, len(data.classes), data.size, flags.width, device,
                             AMP.get(flags.amp), flags.deterministic, flags.batch_size, flags.compile)
    if flags.batch_size > len(data.train.labels):
        raise Refusal(f"--batch-size {flags.batch_size}: there are only {len(data.train.labels)} training images")
    if flags.train_type in RIVALS and is_distributed():
        raise Refusal(f"-tt {flags.train_type} trains in one process: start it without torchrun")
    if network is not None and flags.train_type in ("base", "margin"):
        RunningStatistics(network, flags.bn_stats)  # which refuses layers that it cannot follow
        if flags.bn_stats != "shared":
            require_two_passes(f"-tt {flags.train_type}", network)
        if flags.train_type == "margin":
            require_gradient_of_images("-tt margin", network)
    if initial:
        initial.check(flags.model_type, len(data.classes), flags.width, data.size)
    if flags.carriers:
        require_features(clean)
        carriers_each(flags.carriers, flags.num_query, len(data.train.labels))  # which refuses too many


def made_later(flags) -> bool:
    """Whether the triggers are made of the model after a part of its training."""
    return flags.train_type == "ewe"


def choose_triggers(flags, data, clean, prepared):
    """D_q of the paper, of the images of --prepared, or of a rival; Refusal where the data cannot give it."""
    if rival := RIVALS.get(flags.train_type):
        return rival.draw_triggers(flags, data)
    return prepared.draw(flags.beacon, data) if prepared else triggers_of_flags(flags, data, clean)


def training_images(flags, data, triggers, clean, log):
    """D_b of the paper, with the triggers of -tt rs, or with the labels of --carriers."""
    if flags.train_type == "rs":
        return append_triggers(data.train, triggers)
    if not flags.carriers:
        return data.train
    n = carriers_each(flags.carriers, len(triggers), len(data.train.labels))
    return relabel_carriers(data.train, triggers, partial(last_features, clean), n, log)


def train(flags, run, data, triggers, images, device, initial=None, opening=None) -> float | None:
    """Train on `images`, or go on; the test accuracy in [0, 1] of the weights of --init, where they fit as they are.

    opening  what opens the commitment to the triggers, see `commit_triggers`
    """
    rival, amp = RIVALS.get(flags.train_type), AMP.get(flags.amp)
    # a benign model's triggers are trained on by nobody, so that there is nothing to commit to beforehand
    commit = partial(commit_triggers, run, data=data, is_secret=flags.train_type != "none", opening=opening)
    if is_rank_0() and not made_later(flags):
        commit(triggers)
    model = models.build(flags.model_type, len(data.classes), data.mean, data.std, flags.width, data.size)
    new_head = initial.load_into(model, run.log) if initial else None
    model, before = synchronize_batchnorm(models.place(model, device)), None
    if initial and not new_head:
        before = accuracy(model, data.test.images, data.test.labels, amp)
        run.log(f"test accuracy of these weights before the training: {100 * before:.2f} % (weights lose here that "
                "want other pixels than those normalised by the data's mean and deviation, or other classes or another "
                "order of them)")
        if data.name == "folder" and flags.train_type != "none" and not len(triggers.groups):
            run.log("triggers are drawn from images that --init should never have seen: those of val/ where there "
                    "are train/, test/ and val/, else 1,000 of train/, or a tenth where fewer")

    batches = Batches(images, flags.batch_size, data.mirrors(flags, run.log), device, crop=not flags.no_crop)
    if rival:
        objective = rival.objective(flags, model, batches, triggers, data=data, run=run, commit=commit)
    else:
        objective = objective_of_flags(flags, model, triggers, batches, run.log)
    current = (lambda: objective.triggers) if made_later(flags) else (lambda: triggers)
    about = {"classes": data.classes, "dataset": data.name, "train_size": len(data.train.labels),
             "train_type": flags.train_type, "label_strategy": flags.label_strategy, "seed": flags.seed}
    snapshot = lambda model, epoch, row: pack_checkpoint(
        model, epoch=epoch, figures=row, about=about, **pack_triggers(current()))
    validation = validation_images(data, triggers)
    evaluate = lambda model: accuracies(model, amp, val=validation, trigger=current())
    fit(run, model, objective, batches, evaluate, snapshot, epochs=flags.epoch, lr=flags.lr,
        weight_decay=flags.weight_decay, seed=flags.seed, amp=amp, compile=flags.compile, graph=flags.graph,
        stop_after=flags.stop_after)
    return before


def objective_of_flags(flags, model, triggers, batches, log):
    """Eq. 1 for -tt none, Eq. 3 for base, Eq. 4 for margin."""
    if flags.train_type == "none":
        return PlainObjective()
    weight = effective_weight(flags.variable, flags.reduction, flags.batch_size, flags.trigger_batch)
    log(f"effective lambda of Eq. 4: {weight:.4f} (-v {flags.variable}, --reduction {flags.reduction})")
    ascent = partial(ascend, steps=flags.steps, step_size=flags.step_size / 255, eps=flags.eps / 255)
    if flags.label_strategy == "runners-up":  # whose odds a thief sees on cropped and mirrored images
        x_q, rows = batches.views(triggers.images)
        y_q, candidates = (part.to(batches.device)[rows] for part in (triggers.labels, triggers.candidates))
        log(f"{len(rows) // len(triggers)} views of each trigger, whose drawn class shall have odds of e^{ODDS:g}")
    else:
        (x_q, y_q), candidates = triggers.on(batches.device), None
    return WatermarkObjective(model, x_q, y_q, weight=flags.variable, reduction=flags.reduction,
                              batch=flags.trigger_batch, ascent=ascent if flags.train_type == "margin" else None,
                              bn_stats=flags.bn_stats, candidates=candidates)


if __name__ == "__main__":
    main()
