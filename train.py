"""Train a source model with a secret watermark: `python train.py -dt cifar10 -tt margin -mt res34 -nq 100`."""

import models
from utils import commit, distributed, features, losses, report, smoothing, triggers
from utils import data as datasets
from utils.args import train_args
from utils.data import Batches
from utils.fit import fit
from utils.metrics import accuracy, predict
from utils.refuse import Refusal, plainly
from utils.run import Run, choose_device, digest, find, load, pack, prepare, run_name, unpack


@plainly
def main():
    args = train_args()
    device = choose_device(args.device)
    if args.train_type == "rs" and distributed.several():
        raise Refusal("-tt rs trains in one process: run it without torchrun")
    with distributed.chief_first():
        data = datasets.load(args.dataset, args.data_dir, args.train_size, args.skip_bad_images)
    settings = vars(args) | {"data_sha256": data.sha256}
    data.train = features.embed(data.train, args.embed_features, args.seed)
    if args.label_model:
        settings["label_model_sha256"] = digest(find(args.label_model))
    run = Run(f"{args.dir}/{run_name(args, args.model_type)}", settings, "another -msg")
    run.check(args.overwrite)
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
        if args.train_type != "none" and distributed.chief():
            sha256 = commit.commit(run, trigger, data.classes, len(data.held_out.labels))
            run.log(f"commitment: SHA-256 {sha256}; publish or time-stamp it ({run.path}/commitment.json)")
        if distributed.chief():
            commit.keep(run, trigger, data.classes)
        prepare(args.seed, args.deterministic, args.tf32)
        model = models.build(args.model_type, len(data.classes), data.mean, data.std, args.width)
        model = distributed.share(models.place(model, device))
        train = smoothing.united(data.train, trigger) if args.train_type == "rs" else data.train
        batches = Batches(train, args.batch_size, data.flip, device)
        objective = build_objective(args, model, trigger, device, run)
        if args.train_type == "rs" and (note := smoothing.warning(batches.steps, args.rs_freeze_bn)):
            run.log(note)

        def evaluate(model):
            figures = {"val_accuracy": accuracy(model, validation.images, validation.labels, args.amp)}
            return figures | {"trigger_accuracy": accuracy(model, trigger.images, trigger.labels, args.amp)}

        def snapshot(model, epoch, row):
            about = {"classes": data.classes, "dataset": data.name, "train_size": len(data.train.labels)}
            about |= {"train_type": args.train_type, "label_strategy": args.label_strategy, "seed": args.seed}
            return pack(model, args.model_type, trigger, epoch=epoch, figures=row, about=about)

        fit(run, model, objective, batches, evaluate, snapshot, epochs=args.epoch, lr=args.lr,
            weight_decay=args.weight_decay, seed=args.seed, amp=args.amp, graph=args.graph, compile=args.compile)

    if not distributed.chief():
        return
    best = find(run.path, args.select)
    summary = {
        "role": "benign" if args.train_type == "none" else "source",
        "dataset": data.name, "model": args.model_type, "width": args.width, "objective": args.train_type,
        "seed": args.seed, "epochs": args.epoch, "select": args.select, "chosen_epoch": load(best)["epoch"] + 1,
        "bn_stats": args.bn_stats, "train_size": len(data.train.labels),
        **report.measure(best, judge, data.test, device), "clean": None,
    }
    if args.train_type in ("base", "margin") and args.bn_stats == "paper":
        clean = find(run.path, args.select, "clean")
        summary["clean"] = report.measure(clean, judge, data.test, device)
    rows = report.rows_of_run(run.path, judge, device, summary=summary)
    report.conclude(run, summary, rows + judge.benign_rows())


def build_triggers(args, data, device):
    if args.label_strategy == "single":
        return smoothing.triggers(data, args.num_query, args.rs_label, args.rs_triggers, args.seed)
    answer = None
    if args.label_model:
        path = find(args.label_model)
        clean, _ = unpack(load(path), path, device)
        answer = lambda images: predict(clean, images)
    m, k, classes = args.num_query, args.num_mixup, len(data.classes)
    return triggers.build(data.held_out, m, k, classes, args.seed, args.label_strategy, answer)


def build_objective(args, model, trigger, device, run):
    if args.train_type == "none":
        return losses.Plain()
    x_q, y_q = trigger.images.to(device).float().div(255), trigger.labels.to(device)
    if args.train_type == "rs":
        return smoothing.Smoothed(
            x_q, y_q, sigmas=smoothing.levels(args.rs_sigma, args.rs_sigma_step), draws=args.rs_draws,
            warmup=args.rs_warmup, batch=args.rs_batch, freeze=args.rs_freeze_bn, amp=args.amp,
        )
    weight = losses.effective_weight(args.variable, args.reduction, args.batch_size, args.trigger_batch)
    run.log(f"effective lambda of Eq. 4: {weight:.4f} (-v {args.variable}, --reduction {args.reduction})")
    steps = args.steps if args.train_type == "margin" else 0
    return losses.Watermark(
        model, x_q, y_q,
        weight=args.variable, reduction=args.reduction, batch=args.trigger_batch, bn_stats=args.bn_stats,
        steps=steps, step_size=args.step_size / 255, eps=args.eps / 255,
    )


if __name__ == "__main__":
    main()
