"""Train a source model with a secret watermark: `python train.py -dt cifar10 -tt margin -mt res34 -nq 100`."""

import models
from utils import commit, distributed, ewe, losses, report, triggers
from utils import data as datasets
from utils.args import train_args
from utils.data import Batches
from utils.fit import fit
from utils.metrics import accuracy, predict
from utils.refuse import Refusal, plainly
from utils.run import Run, choose_device, digest, find, load, pack, prepare, read_trigger, run_name, unpack


@plainly
def main():
    args = train_args()
    device = choose_device(args.device)
    with distributed.chief_first():
        data = datasets.load(args.dataset, args.data_dir, args.train_size, args.skip_bad_images)
    settings = vars(args) | {"data_sha256": data.sha256}
    if args.label_model:
        settings["label_model_sha256"] = digest(find(args.label_model))
    run = Run(f"{args.dir}/{run_name(args, args.model_type)}", settings, "another -msg")
    run.check(args.overwrite)
    made = args.train_type == "ewe" and args.ewe_triggers == "own"  # not before the model has been trained a while
    if args.train_type == "ewe":
        if distributed.several():
            raise Refusal("-tt ewe trains in one process: start it without torchrun")
        ewe.slices(data.train.labels, args.ewe_target, args.batch_size, args.ewe_epochs)
    trigger, validation = build_triggers(args, data, device)
    if args.batch_size > len(data.train.labels):
        raise Refusal(f"--batch-size {args.batch_size}: there are only {len(data.train.labels)} training images")
    uniform = args.label_strategy == "random"
    judge = report.Judge(trigger, len(data.classes), uniform, args.benign, device)

    run.open(device, args.overwrite)
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
    else:
        for note in data.notes:
            run.log(note)
        if distributed.chief() and not made:
            settle(run, trigger, data, args.train_type != "none")
        prepare(args.seed, args.deterministic, args.tf32)
        model = models.build(args.model_type, len(data.classes), data.mean, data.std, args.width)
        model = distributed.share(models.place(model, device))
        batches = Batches(data.train, args.batch_size, data.flip, device)
        objective = build_objective(args, model, trigger, device, run, batches, data)
        secret = lambda: objective.trigger if made else trigger  # None before EWE has made them

        def evaluate(model):
            figures = {"val_accuracy": accuracy(model, validation.images, validation.labels, args.amp)}
            if (known := secret()) is None:
                return figures
            return figures | {"trigger_accuracy": accuracy(model, known.images, known.labels, args.amp)}

        def snapshot(model, epoch, row):
            about = {"classes": data.classes, "dataset": data.name, "train_size": len(data.train.labels)}
            about |= {"train_type": args.train_type, "label_strategy": args.label_strategy, "seed": args.seed}
            return pack(model, args.model_type, secret(), epoch=epoch, figures=row, about=about)

        epochs = args.epoch + getattr(objective, "more", 0)
        fit(run, model, objective, batches, evaluate, snapshot, epochs=epochs, lr=args.lr,
            weight_decay=args.weight_decay, seed=args.seed, amp=args.amp, graph=args.graph, compile=args.compile)

    if not distributed.chief():
        return
    if made:
        judge = report.Judge(read_trigger(run.path / "triggers.pt", len(data.classes)), len(data.classes), uniform,
                             args.benign, device)
    best = find(run.path, args.select)
    summary = {
        "role": "benign" if args.train_type == "none" else "source",
        "dataset": data.name, "model": args.model_type, "width": args.width, "objective": args.train_type,
        "seed": args.seed, "epochs": len(run.rows()), "select": args.select, "chosen_epoch": load(best)["epoch"] + 1,
        "bn_stats": args.bn_stats, "train_size": len(data.train.labels),
        **report.measure(best, judge, data.test, device), "clean": None,
    }
    if args.train_type != "none" and args.bn_stats == "paper":
        clean = find(run.path, args.select, "clean")
        summary["clean"] = report.measure(clean, judge, data.test, device)
    run.write_json("summary.json", summary)
    report.conclude(run, summary, report.rows_of_run(run.path, judge, device) + judge.benign_rows())


def settle(run, trigger, data, secret=True):
    """Keep the final trigger set, and commit to it before it is trained on."""
    commit.keep(run, trigger, data.classes)
    if secret:
        sha256 = commit.commit(run, trigger, data.classes, len(data.held_out.labels))
        run.log(f"commitment: SHA-256 {sha256}; publish or time-stamp it ({run.path}/commitment.json)")


def build_triggers(args, data, device):
    if args.train_type == "ewe" and args.ewe_triggers == "own":
        own = ewe.gather(args.ewe_source, args.ewe_target, args.num_query, data, args.data_dir, args.seed)
        return own, triggers.validation(data, own)
    answer = None
    if args.label_model:
        path = find(args.label_model)
        clean, _ = unpack(load(path), path, device)
        answer = lambda images: predict(clean, images)
    m, k, classes = args.num_query, args.num_mixup, len(data.classes)
    return triggers.build(data.held_out, m, k, classes, args.seed, args.label_strategy, answer)


def build_objective(args, model, trigger, device, run, batches, data):
    if args.train_type == "none":
        return losses.Plain()
    if args.train_type == "ewe":
        def keep(new):
            path = run.path / "triggers.pt"
            if path.exists():  # a run that was killed meanwhile: what it may have committed to counts
                new = read_trigger(path, len(data.classes))
            ewe.check_foreign(new.images, data, f"--ewe-source {args.ewe_source}")
            settle(run, new, data)
            return new

        making = {"steps": args.ewe_steps, "step_size": args.ewe_step_size, "threshold": args.ewe_threshold}
        return ewe.Entangled(
            model, batches, trigger, target=args.ewe_target, made=args.ewe_triggers == "own",
            patch=args.ewe_source.isdecimal(), epochs=args.epoch, w_epochs=args.ewe_epochs, ratio=args.ewe_ratio,
            factor=args.ewe_factor, temperature=args.ewe_temperature, temperature_lr=args.ewe_temperature_lr,
            making=making, bn_stats=args.bn_stats, settle=keep,
        )
    weight = losses.effective_weight(args.variable, args.reduction, args.batch_size, args.trigger_batch)
    run.log(f"effective lambda of Eq. 4: {weight:.4f} (-v {args.variable}, --reduction {args.reduction})")
    steps = args.steps if args.train_type == "margin" else 0
    return losses.Watermark(
        model, trigger.images.to(device).float().div(255), trigger.labels.to(device),
        weight=args.variable, reduction=args.reduction, batch=args.trigger_batch, bn_stats=args.bn_stats,
        steps=steps, step_size=args.step_size / 255, eps=args.eps / 255,
    )


if __name__ == "__main__":
    main()
