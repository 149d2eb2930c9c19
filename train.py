"""Train a source model with a secret watermark: `python train.py -dt cifar10 -tt margin -mt res34 -nq 100`."""

import models
from utils import data as datasets
from utils import distributed, features, report, sources
from utils.args import train_args
from utils.checkpoint import find, load, pack, read_trigger
from utils.files import digest
from utils.fit import fit
from utils.metrics import accuracy
from utils.refuse import plainly
from utils.run import Run, choose_device, prepare, run_name


@plainly
def main():
    args = train_args()
    device = choose_device(args.device)
    with distributed.chief_first():
        data = datasets.load(args.dataset, args.data_dir, args.train_size, args.skip_bad_images)
    settings = vars(args) | {"data_sha256": data.sha256}
    data.train = features.embed(data.train, args.embed_features, args.seed)
    if args.label_model:
        settings["label_model_sha256"] = digest(find(args.label_model))
    run = Run(f"{args.dir}/{run_name(args, args.model_type)}", settings, "another -msg")
    run.check(args.overwrite)
    sources.check(args, data)
    trigger, validation = sources.draw(args, data, device)
    late = sources.made_late(args)
    uniform = args.label_strategy == "random"
    judge = report.Judge(trigger, len(data.classes), uniform, args.benign, device)

    run.open(device, args.overwrite)
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
    else:
        for note in data.notes:
            run.log(note)
        if distributed.chief() and not late:
            sources.settle(run, trigger, data, args.train_type != "none")
        prepare(args.seed, args.deterministic, args.tf32)
        model = models.build(args.model_type, len(data.classes), data.mean, data.std, args.width)
        model = distributed.share(models.place(model, device))
        batches = sources.batches(args, data, trigger, device)
        objective = sources.objective(args, model, batches, trigger, data, run)
        secret = lambda: objective.trigger if late else trigger  # None before it is made

        def evaluate(model):
            figures = {"val_accuracy": accuracy(model, validation.images, validation.labels, args.amp)}
            if (known := secret()) is None:
                return figures
            return figures | {"trigger_accuracy": accuracy(model, known.images, known.labels, args.amp)}

        def snapshot(model, epoch, row):
            about = {"classes": data.classes, "dataset": data.name, "train_size": len(data.train.labels)}
            about |= {"train_type": args.train_type, "label_strategy": args.label_strategy, "seed": args.seed}
            return pack(model, args.model_type, secret(), epoch=epoch, figures=row, about=about)

        fit(run, model, objective, batches, evaluate, snapshot, epochs=args.epoch + objective.more, lr=args.lr,
            weight_decay=args.weight_decay, seed=args.seed, amp=args.amp, graph=args.graph, compile=args.compile)

    if not distributed.chief():
        return
    if late:
        final = read_trigger(run.path / "triggers.pt", len(data.classes))
        judge = report.Judge(final, len(data.classes), uniform, args.benign, device)
    best = find(run.path, args.select)
    summary = {
        "role": "benign" if args.train_type == "none" else "source",
        "dataset": data.name, "model": args.model_type, "width": args.width, "objective": args.train_type,
        "seed": args.seed, "epochs": len(run.rows()), "select": args.select, "chosen_epoch": load(best)["epoch"] + 1,
        "bn_stats": args.bn_stats, "train_size": len(data.train.labels),
        **report.measure(best, judge, data.test, device), "clean": None,
    }
    if args.train_type in ("base", "margin", "ewe") and args.bn_stats == "paper":
        clean = find(run.path, args.select, "clean")
        summary["clean"] = report.measure(clean, judge, data.test, device)
    rows = report.rows_of_run(run.path, judge, device, summary=summary)
    report.conclude(run, summary, rows + judge.benign_rows())


if __name__ == "__main__":
    main()
