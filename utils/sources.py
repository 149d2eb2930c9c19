"""What each `-tt` of train.py trains on, and by which objective."""

from utils import commit, distributed, ewe, losses, smoothing, triggers
from utils.checkpoint import find, read_model, read_trigger
from utils.data import Batches
from utils.metrics import predict
from utils.refuse import Refusal


def check(args, data) -> None:
    """Refuse what the flags cannot ask of these data; makes nothing."""
    if args.batch_size > len(data.train.labels):
        raise Refusal(f"--batch-size {args.batch_size}: there are only {len(data.train.labels)} training images")
    if args.train_type in ("ewe", "rs") and distributed.several():
        raise Refusal(f"-tt {args.train_type} trains in one process: start it without torchrun")
    if args.train_type == "ewe":
        ewe.slices(data.train.labels, args.ewe_target, args.batch_size, args.ewe_epochs)


def made_late(args) -> bool:
    """Whether the triggers are made from the model, after it has been trained a while (EWE's own)."""
    return args.train_type == "ewe" and args.ewe_triggers == "own"


def draw(args, data, device):
    """(Trigger, validation images); where they are made late, the images that are to become triggers."""
    if made_late(args):
        own = ewe.gather(args.ewe_source, args.ewe_target, args.num_query, data, args.data_dir, args.seed)
        return own, triggers.validation(data, own)
    if args.train_type == "rs" and args.rs_triggers != "shared":
        return smoothing.triggers(data, args.num_query, args.rs_label, args.rs_triggers, args.seed)
    answer = None
    if args.label_model:
        path = find(args.label_model)
        clean = read_model(path, device)
        answer = lambda images: predict(clean, images)
    m, k, classes = args.num_query, args.num_mixup, len(data.classes)
    return triggers.build(data.held_out, m, k, classes, args.seed, args.label_strategy, answer)


def settle(run, trigger, data, secret=True) -> None:
    """Keep the final trigger set and, where it is a secret, commit to it before it is trained on."""
    commit.keep(run, trigger, data.classes)
    if secret:
        sha256 = commit.commit(run, trigger, data.classes, len(data.held_out.labels))
        run.log(f"commitment: SHA-256 {sha256}; publish or time-stamp it ({run.path}/commitment.json)")


def batches(args, data, trigger, device) -> Batches:
    """The training images; RS trains on its triggers as on any other image."""
    images = smoothing.united(data.train, trigger) if args.train_type == "rs" else data.train
    return Batches(images, args.batch_size, data.flip, device)


def objective(args, model, batches, trigger, data, run) -> losses.Objective:
    """What `-tt` minimises."""
    if args.train_type == "none":
        return losses.Plain()
    if args.train_type == "ewe":
        return _entangled(args, model, batches, trigger, data, run)
    x_q, y_q = trigger.images.to(batches.device).float().div(255), trigger.labels.to(batches.device)
    if args.train_type == "rs":
        if note := smoothing.warning(batches.steps, args.rs_freeze_bn):
            run.log(note)
        return smoothing.Smoothed(
            x_q, y_q, sigmas=smoothing.levels(args.rs_sigma, args.rs_sigma_step), draws=args.rs_draws,
            warmup=args.rs_warmup, batch=args.rs_batch, freeze=args.rs_freeze_bn, amp=args.amp,
        )
    weight = losses.effective_weight(args.variable, args.reduction, args.batch_size, args.trigger_batch)
    run.log(f"effective lambda of Eq. 4: {weight:.4f} (-v {args.variable}, --reduction {args.reduction})")
    return losses.Watermark(
        model, x_q, y_q, weight=args.variable, reduction=args.reduction, batch=args.trigger_batch,
        bn_stats=args.bn_stats, steps=args.steps if args.train_type == "margin" else 0,
        step_size=args.step_size / 255, eps=args.eps / 255,
    )


def _entangled(args, model, batches, trigger, data, run):
    def keep(new):
        path = run.path / "triggers.pt"
        if path.exists():  # a run that was killed meanwhile: what it may have committed to counts
            new = read_trigger(path, len(data.classes))
        ewe.check_foreign(new.images, data, f"--ewe-source {args.ewe_source}")
        settle(run, new, data)
        return new

    making = {"steps": args.ewe_steps, "step_size": args.ewe_step_size, "threshold": args.ewe_threshold}
    return ewe.Entangled(
        model, batches, trigger, target=args.ewe_target, made=made_late(args), patch=args.ewe_source.isdecimal(),
        epochs=args.epoch, w_epochs=args.ewe_epochs, ratio=args.ewe_ratio, factor=args.ewe_factor,
        temperature=args.ewe_temperature, temperature_lr=args.ewe_temperature_lr, making=making,
        bn_stats=args.bn_stats, settle=keep,
    )
