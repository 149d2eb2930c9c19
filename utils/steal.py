"""A theft from beginning to end: what distill.py and extraction.py share."""

import copy
from pathlib import Path
from typing import NamedTuple

import torch

import models
from utils import attacks, distributed, edit, report, triggers
from utils import data as datasets
from utils.checkpoint import find, load, pack, unpack
from utils.data import Batches, Data, Images
from utils.files import digest
from utils.fit import fit
from utils.metrics import accuracy
from utils.refuse import Refusal
from utils.run import Run, choose_device, prepare, run_name
from utils.step import precise


class Scene(NamedTuple):
    """What a theft needs: the run's folder, the source, the thief's data (`own`), the source's data (`home`)."""

    run: Run
    attack: str
    settings: dict
    device: torch.device
    folder: Path
    source: torch.nn.Module
    trigger: triggers.Trigger
    own: Data
    home: Data
    validation: Images
    judge: report.Judge


def scene(args, attack: str, folder: str, needs_labels: bool) -> Scene:
    """Find the source that the flags name and load the data; Refusal where they do not fit. Makes nothing."""
    device = choose_device(args.device)
    source_folder = Path(args.dir) / run_name(args, args.teacher_model_type)
    source_path = find(source_folder, args.select, args.teacher_bn)
    checkpoint = load(source_path)
    source, trigger = unpack(checkpoint, source_path, device)
    about = checkpoint.get("about", {})
    check_source(args, checkpoint, trigger, source_path)
    same = (args.dataset_source, args.data_dir_source) == (args.dataset, args.data_dir)
    size = args.train_size or (about.get("train_size") if same else None)
    with distributed.chief_first():
        own = datasets.load(args.dataset_source, args.data_dir_source, size, args.skip_bad_images)
        home = own if same else datasets.load(args.dataset, args.data_dir, None, args.skip_bad_images)
    check_data(args, own, home, about, len(source[1].linear.bias), needs_labels)
    settings = vars(args) | {"attack": attack, "source_sha256": digest(source_path)}
    settings |= {"data_sha256": home.sha256, "data_source_sha256": own.sha256}
    if getattr(args, "on", ""):
        settings["on_sha256"] = digest(find(source_folder / args.on, args.select))
    run = Run(source_folder / f"{folder}{args.additional_message}", settings, "another -admsg")
    run.check(args.overwrite)
    validation = triggers.validation(home, trigger)
    uniform = about.get("label_strategy", "random") == "random"
    judge = report.Judge(trigger, len(home.classes), uniform, args.benign, device)
    return Scene(run, attack, settings, device, source_folder, source, trigger, own, home, validation, judge)


def steal(args, attack: str, folder: str, objective, needs_labels: bool) -> None:
    """Train a surrogate against the source that the flags name, and report.

    `objective` (surrogate, source's logits of pixels) -> an objective as in `utils.losses`. The surrogate starts
    from random weights and is normalised by its own data; the source is frozen. Validation and test images are those
    of the source's data set, triggers the source's.
    """
    at = scene(args, attack, folder, needs_labels)

    def build():
        model = models.build(args.model_type, len(at.home.classes), at.own.mean, at.own.std, args.width)
        model = distributed.share(models.place(model, at.device))
        return model, objective(model, precise(at.source, args.amp, args.compile))

    train(args, at, build, args.model_type, args.width)


def remove(args) -> None:
    """Fine-tune, or prune and fine-tune, a copy of the source (or of the surrogate `--on`) on the thief's labels."""
    attack = f"{args.attack} {args.finetune}"
    at = scene(args, attack, "extraction", needs_labels=True)
    start, kind = beginning(args, at)
    last, anew = attacks.FINETUNES[args.finetune]

    def build():
        model = copy.deepcopy(start)
        if anew:
            model[1].linear.reset_parameters()
        model = distributed.share(model)
        objective = attacks.FineTune(model, last)
        if args.attack == "fineprune":
            kept = masks(args, start, at)(args.ratio)
            edit.prune(model, kept)
            edit.hold(model, kept)
        return model, objective

    train(args, at, build, kind, width(start))


def sweep(args) -> None:
    """Prune or quantise the source (or the surrogate `--on`) in several strengths, without training: a row each."""
    at = scene(args, args.attack, "extraction", needs_labels=False)
    start, kind = beginning(args, at)
    at.run.open(at.device, args.overwrite)

    def row(name, model, **strength):
        test = accuracy(model, at.home.test.images, at.home.test.labels, args.amp)
        return strength | at.judge.row(name, at.judge.ask(model), test)

    of = args.on or "source"
    before = row(of, start)
    if args.attack == "quantize":
        rows = [row(f"{of}, weights of {b} bits", edit.quantize(copy.deepcopy(start), b), bits=b) for b in args.bits]
    else:
        kept, name = masks(args, start, at), f"{of}, pruned {{}} by {args.criterion}"
        rows = [row(name.format(r), edit.prune(copy.deepcopy(start), kept(r)), ratio=r) for r in args.ratios]
    figures = {k: v for k, v in before.items() if k != "model"}
    summary = {"role": "edited", "dataset": at.home.name, "dataset_source": at.own.name, "model": kind,
               "width": width(start), "attack": args.attack, "on": of, "source": at.folder.name,
               "source_sha256": at.settings["source_sha256"], "seed": args.seed, **figures, "clean": None}
    if args.attack == "prune":
        summary["criterion"] = args.criterion
    report.conclude(at.run, summary, [*rows, before, *at.judge.benign_rows()])


def beginning(args, at: Scene):
    """The model that an editing attack starts from, frozen, and its architecture's name."""
    model, kind = at.source, args.teacher_model_type
    if args.on:
        path = find(at.folder / args.on, args.select)
        checkpoint = load(path)
        (model, _), kind = unpack(checkpoint, path, at.device), checkpoint["model"]["type"]
    if args.model_type not in ("", kind):
        raise Refusal(f"-dmt {args.model_type}: -at {args.attack} keeps the architecture, a {kind}; leave -dmt out")
    return model, kind


def masks(args, model, at: Scene):
    """ratio -> masks of `edit.prune`; activations are measured once, on the thief's training images."""
    measured = edit.activations(model, at.own.train.images) if args.criterion == "activation" else None
    return lambda ratio: edit.masks(model, ratio, args.criterion, measured)


def width(model) -> int:
    """Channels of the first stage."""
    return next(p for p in model.parameters() if p.dim() == 4).shape[0]


def train(args, at: Scene, build, model_type: str, channels: int) -> None:
    """Train what `build()` -> (model, objective) gives on the thief's data, and report."""
    run, home, trigger, validation = at.run, at.home, at.trigger, at.validation
    run.open(at.device, args.overwrite)
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
    else:
        prepare(args.seed, args.deterministic, args.tf32)
        model, objective = build()
        batches = Batches(at.own.train, args.batch_size, at.own.flip, at.device)

        def evaluate(model):
            figures = {"val_accuracy": accuracy(model, validation.images, validation.labels, args.amp)}
            return figures | {"trigger_accuracy": accuracy(model, trigger.images, trigger.labels, args.amp)}

        def snapshot(model, epoch, row):
            about = {"classes": home.classes, "dataset": home.name, "attack": at.attack, "seed": args.seed}
            return pack(model, model_type, epoch=epoch, figures=row, about=about)

        fit(run, model, objective, batches, evaluate, snapshot, epochs=args.epoch, lr=args.lr,
            weight_decay=args.weight_decay, seed=args.seed, amp=args.amp, graph=args.graph, compile=args.compile)

    if not distributed.chief():
        return
    best = find(run.path, args.select)
    summary = {
        "role": "surrogate", "dataset": home.name, "dataset_source": at.own.name, "model": model_type,
        "width": channels, "attack": at.attack, "teacher_bn": args.teacher_bn, "source": at.folder.name,
        "source_sha256": at.settings["source_sha256"],
        "seed": args.seed, "epochs": args.epoch, "select": args.select, "chosen_epoch": load(best)["epoch"] + 1,
        **report.measure(best, at.judge, home.test, at.device), "clean": None,
    }
    rows = []
    for folder in (at.folder, *sorted({*report.surrogates(at.folder), run.path})):
        own, select = folder == run.path, args.select if folder == at.folder else None
        try:
            rows += report.rows_of_run(folder, at.judge, at.device, select, summary if own else None)
        except Refusal as refusal:  # another run's damage is no reason to lose this one
            if own:
                raise
            run.log(f"left out of the table: {refusal}")
    report.conclude(run, summary, rows + at.judge.benign_rows())


def check_source(args, checkpoint, trigger, path) -> None:
    """Refuse a source that is not the one the flags describe."""
    model_type, about = checkpoint["model"]["type"], checkpoint.get("about", {})
    if model_type != args.teacher_model_type:
        raise Refusal(f"-tmt {args.teacher_model_type}: {path} holds a {model_type}; pass -tmt {model_type}")
    if about.get("train_type", args.train_type) != args.train_type:
        raise Refusal(f"-tt {args.train_type}: {path} was trained with -tt {about['train_type']}; pass that")
    if trigger is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")


def check_data(args, own, home, about, classes: int, needs_labels: bool) -> None:
    """Refuse data that cannot serve: other classes than the source's where labels or tests need them."""
    if len(home.classes) != classes or about.get("classes", home.classes) != home.classes:
        raise Refusal(
            f"-dt {args.dataset}: its {len(home.classes)} classes are not the source's {classes}; "
            "pass the -dt and --data-dir the source was trained on"
        )
    if needs_labels and own.classes != home.classes:
        raise Refusal(
            f"-dsrc {args.dataset_source}: this attack needs true labels in the source's classes, and these are "
            "others; use -at soft or hard, which need none"
        )
    if args.batch_size > len(own.train.labels):
        raise Refusal(f"--batch-size {args.batch_size}: there are only {len(own.train.labels)} training images")
