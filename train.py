"""Train a source model with a secret watermark: `python train.py -dt cifar10 -tt margin -mt res34 -nq 100`."""

import models
from utils.command_line.train import train_command
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.ownership.commitment import commit_triggers
from utils.ownership.results import TriggerTests, report_source
from utils.rivals.embedded_features import embed_style
from utils.runs.checkpoints import instead_of_mt
from utils.runs.folder import RunFolder
from utils.runs.initial_weights import read_initial_weights
from utils.runs.trial import check_training
from utils.system.machine import choose_device, is_chief, prepare_torch
from utils.system.refusals import refuse_in_one_sentence
from utils.training.global_batch import synchronize_batchnorm
from utils.training.loop import fit
from utils.watermark.evaluation import Evaluation
from utils.watermark.source_checkpoint import SourceSnapshot


@refuse_in_one_sentence
def main():
    command = train_command()
    watermark, training, output = command.watermark, command.training, command.output
    device = choose_device(command.device)
    initial = read_initial_weights(command.init)
    data = load_data(**command.data)
    record = output.record | {"data_sha256": data.sha256} | watermark.triggers.record() | initial.record()
    data.train = embed_style(data.train, command.styled_share, training.seed)
    run = RunFolder(output.folder, record, output.tag_flag)
    run.check(output.overwrite)
    network = check_training("-mt", command.model_type, len(data.classes), data.size, command.width, device,
                             training.amp, training.deterministic)
    watermark.check(data, training.batch_size, network)
    initial.check(command.model_type, len(data.classes), command.width, data.size)
    triggers, validation = watermark.draw(data, device)
    with instead_of_mt("--benign imports no code; leave it out, and pass it to `utils.verify claim` with -mt {}"):
        tests = TriggerTests(triggers, len(data.classes), watermark.labels_are_uniform, command.benign, device)
    facts = command.facts(data, network)
    del network  # its memory

    run.open(device, output.overwrite)
    if run.finished:
        run.log(f"{run.path} is finished; its figures:")
    else:
        run.log_all(data.notes)
        commit = lambda made: commit_triggers(run, made, data, watermark.is_secret, watermark.triggers.opening)
        if is_chief() and not watermark.makes_triggers_later:
            commit(triggers)
        prepare_torch(training.seed, training.deterministic, training.tf32)
        model = models.build(command.model_type, len(data.classes), data.mean, data.std, command.width, data.size)
        initial.load_into(model, run.log)
        model = synchronize_batchnorm(models.place(model, device))
        images = watermark.training_images(data, triggers, device, run.log)
        batches = Batches(images, training.batch_size, data.flip, device)
        objective = watermark.objective(model, batches, triggers, data=data, run=run, commit=commit, amp=training.amp)
        current = (lambda: objective.triggers) if watermark.makes_triggers_later else (lambda: triggers)
        evaluate = Evaluation(validation, current, training.amp)
        snapshot = SourceSnapshot(facts, current)
        fit(run, model, objective, batches, evaluate, snapshot, training.lengthened(objective.more))
    if is_chief():
        report_source(run, facts, tests, data.test, device)


if __name__ == "__main__":
    main()
