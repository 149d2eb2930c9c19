"""A theft from beginning to end: what distill.py and extraction.py share."""

from pathlib import Path

import models
from utils import data as datasets
from utils import report, triggers
from utils.attacks import Copy
from utils.data import Batches
from utils.fit import fit, precise
from utils.metrics import accuracy
from utils.refuse import Refusal
from utils.run import Run, choose_device, digest, find, load, pack, prepare, run_name, unpack


def steal(args, attack: str, folder: str, loss, needs_labels: bool) -> None:
    """Train a surrogate on `loss` against the source that the flags name, and report.

    The surrogate starts from random weights and is normalised by its own data; the source is frozen. Validation
    and test images are those of the source's data set, triggers the source's.
    """
    device = choose_device(args.device)
    source_folder = Path(args.dir) / run_name(args, args.teacher_model_type)
    source_path = find(source_folder, args.select, args.teacher_bn)
    checkpoint = load(source_path)
    source, trigger = unpack(checkpoint, source_path, device)
    about = checkpoint.get("about", {})
    check_source(args, checkpoint, trigger, source_path)
    same = (args.dataset_source, args.data_dir_source) == (args.dataset, args.data_dir)
    size = args.train_size or (about.get("train_size") if same else None)
    own = datasets.load(args.dataset_source, args.data_dir_source, size, args.skip_bad_images)
    home = own if same else datasets.load(args.dataset, args.data_dir, None, args.skip_bad_images)
    check_data(args, own, home, about, len(source[1].linear.bias), needs_labels)
    settings = vars(args) | {"attack": attack, "source_sha256": digest(source_path)}
    settings |= {"data_sha256": home.sha256, "data_source_sha256": own.sha256}
    run = Run(source_folder / f"{folder}{args.additional_message}", settings, "another -admsg")
    run.check(args.overwrite)
    validation = triggers.validation(home, trigger)
    uniform = about.get("label_strategy", "random") == "random"
    judge = report.Judge(trigger, len(home.classes), uniform, args.benign, device)

    run.open(device, args.overwrite)
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
    else:
        prepare(args.seed, args.deterministic)
        model = models.place(models.build(args.model_type, len(home.classes), own.mean, own.std, args.width), device)
        batches = Batches(own.train, args.batch_size, own.flip, device)

        def evaluate(model):
            figures = {"val_accuracy": accuracy(model, validation.images, validation.labels, args.amp)}
            return figures | {"trigger_accuracy": accuracy(model, trigger.images, trigger.labels, args.amp)}

        def snapshot(model, epoch, row):
            about = {"classes": home.classes, "dataset": home.name, "attack": attack, "seed": args.seed}
            return pack(model, args.model_type, epoch=epoch, figures=row, about=about)

        fit(run, model, Copy(precise(source, args.amp), loss, needs_labels), batches, evaluate, snapshot,
            epochs=args.epoch, lr=args.lr, weight_decay=args.weight_decay, seed=args.seed, amp=args.amp)

    best = find(run.path, args.select)
    summary = {
        "role": "surrogate", "dataset": home.name, "dataset_source": own.name, "model": args.model_type,
        "width": args.width, "attack": attack, "teacher_bn": args.teacher_bn, "source": source_folder.name,
        "source_sha256": settings["source_sha256"],
        "seed": args.seed, "epochs": args.epoch, "select": args.select, "chosen_epoch": load(best)["epoch"] + 1,
        **report.measure(best, judge, home.test, device), "clean": None,
    }
    run.write_json("summary.json", summary)
    rows = report.rows_of_run(source_folder, judge, device, args.select)
    for surrogate in report.surrogates(source_folder):
        rows += report.rows_of_run(surrogate, judge, device)
    report.conclude(run, summary, rows + judge.benign_rows())


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
