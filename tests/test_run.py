"""Run folders: checkpoints are data, runs go on where they stood, nothing half-written is ever read."""

import io
import json
import math
import os
import pickle
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from utils.data.batches import Batches
from utils.data.images import Images
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, pack_checkpoint, save_checkpoint
from utils.runs.folder import RunFolder
from utils.system.files import write_atomically
from utils.system.refusals import Interrupted, Refusal
from utils.training.loop import fit
from utils.training.objective import Objective
from utils.training.settings import TrainingSettings
from utils.watermark.objective import WatermarkObjective
from utils.watermark.running_statistics import RunningStatistics
from utils.watermark.trigger_files import pack_triggers, unpack_source
from utils.watermark.triggers import TriggerSet

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 4


def same(a, b, where="checkpoint"):
    """Bit-equal contents; times may differ."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in ("seconds", "images_per_second"):
                same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b and type(a) is type(b), where


def same_runs(one, two):
    """Two run folders hold the same rows and the same checkpoints, and nothing else."""
    names = sorted(p.name for p in (one / "checkpoints").iterdir())
    assert names == sorted(p.name for p in (two / "checkpoints").iterdir())
    for name in names:
        if name == "checkpoint_previous.pt":  # after a signal it is the middle of an epoch
            continue
        same(load_checkpoint(one / "checkpoints" / name), load_checkpoint(two / "checkpoints" / name), name)
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    same(*rows, "metrics.jsonl")
    assert not list(one.rglob("*.partial")) and not list(two.rglob("*.partial"))


# ---- the loop, in a real folder, with a model of a few weights -----------------------------------------------


def tiny_fit(path, hook=None, lr=0.1, batch=4, bn_stats="paper", overwrite=False, epochs=EPOCHS,
             with_model=False):
    """A margin watermark on noise; `hook(step number)` is called before each step. Returns the Run."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(8),
                          nn.Flatten(), nn.Linear(4, 3))
    g = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (16, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(16) % 3,
                    torch.arange(16))
    objective = WatermarkObjective(model, torch.rand(5, 3, 32, 32, generator=g), torch.arange(5) % 3, weight=1.0,
                          reduction="sum", batch=3, steps=2, step_size=0.02, eps=0.03, bn_stats=bn_stats)
    counter = iter(range(10**6))

    class Hooked(Objective):
        statistics = objective.statistics
        sample = staticmethod(objective.sample)

        def __call__(self, *inputs):
            if hook:
                hook(next(counter), *([model] if with_model else []))
            return objective(*inputs)

    def evaluate(m):
        m.eval()
        value = float(m(images.images.float() / 255).sum().detach())
        m.train()
        return {"val_accuracy": abs(value) % 1, "trigger_accuracy": 0.5}

    def snapshot(m, epoch, row):
        return {"model": {"state_dict": {n: t.detach().clone() for n, t in m.state_dict().items()}}, "epoch": epoch,
                "figures": row}

    run = RunFolder(path, {"seed": 0, "lr": lr}, "another -msg")
    run.check(overwrite)
    run.open(CPU, overwrite)
    fit(run, model, Hooked(), Batches(images, batch, True), evaluate, snapshot, TrainingSettings(epochs, lr))
    return run


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """The disk's own promise (fsync) and git's answer cost most of the time here, and no test looks at them."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        monkeypatch.setattr("utils.runs.folder.describe_process", lambda device: {})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return tiny_fit(tmp_path_factory.mktemp("unbroken") / "run").path


def test_a_folder_holds_the_official_checkpoints(unbroken):
    names = {p.name for p in (unbroken / "checkpoints").iterdir()}
    assert names == {f"checkpoint_{n}.pt" for n in ("init", "latest", "latest_clean", "previous", "nat_best",
                                                    "nat_best_clean", "query_best", "query_best_clean")}
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    best = max(rows, key=lambda row: (row["val_accuracy"], row["epoch"]))
    assert load_checkpoint(unbroken / "checkpoints" / "checkpoint_nat_best.pt")["epoch"] == best["epoch"] - 1
    best = load_checkpoint(unbroken / "checkpoints" / "checkpoint_query_best.pt")
    assert best["epoch"] == 2  # a tie: the later epoch
    assert load_checkpoint(unbroken / "checkpoints" / "checkpoint_init.pt")["epoch"] == -1


def test_every_twentieth_epoch_stays(tmp_path):
    tiny_fit(tmp_path / "run", epochs=41, batch=16)
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("checkpoint_[0-9]*.pt"))
    assert kept == [f"checkpoint_{n}.pt" for n in ("20", "20_clean", "40", "40_clean")]
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "checkpoint_20.pt")["epoch"] == 19


class Death(BaseException):
    """A SIGKILL that a test survives."""


def writes_of_a_run(tmp_path, monkeypatch):
    count, real = [0], write_atomically
    replace_write(monkeypatch, lambda *a, **k: (count.__setitem__(0, count[0] + 1), real(*a, **k)))
    tiny_fit(tmp_path / "counted")
    replace_write(monkeypatch, real)
    return count[0]


def replace_write(monkeypatch, write):
    for module in ("utils.system.files", "utils.runs.checkpoints", "utils.runs.folder"):
        monkeypatch.setattr(f"{module}.write_atomically", write)


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_killed_at_every_single_write_a_run_goes_on_bit_equal(moment, unbroken, tmp_path, monkeypatch):
    total = writes_of_a_run(tmp_path, monkeypatch)
    assert total > 15
    real = write_atomically
    for fatal in range(total):
        path, count = tmp_path / f"killed {fatal}", [0]

        def write(target, content, private=False, path=path, count=count, fatal=fatal):
            count[0] += 1
            if count[0] == fatal + 1:
                if moment == "half":  # the temporary file stays behind, cut
                    target.with_name(f".{target.name}.partial").write_bytes(bytes(content)[: len(content) // 2])
                elif moment == "after":
                    real(target, content, private)
                raise Death
            real(target, content, private)

        replace_write(monkeypatch, write)
        with pytest.raises(Death) as death:
            tiny_fit(path)
        del death  # its traceback holds the run, and so the lock
        replace_write(monkeypatch, real)
        tiny_fit(path)
        same_runs(path, unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", range(0, EPOCHS * STEPS - 1, 2))
def test_a_signal_ends_after_the_step_and_the_run_goes_on_bit_equal(at, number, unbroken, tmp_path):
    steps = []

    def hook(step):
        steps.append(step)
        if step == at:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    try:
        tiny_fit(tmp_path / "run", hook)
        raise AssertionError("not interrupted")
    except Interrupted as stop:
        assert stop.signum == number and "same command" in str(stop)
    assert steps[-1] == at and signal.getsignal(number) is before  # this step was still taken
    again = []
    tiny_fit(tmp_path / "run", again.append)
    assert len(again) == EPOCHS * STEPS - 1 - at  # no step twice
    same_runs(tmp_path / "run", unbroken)


def test_a_second_signal_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(tmp_path / "run", lambda step: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])


@pytest.mark.parametrize("bn_stats", ["clean", "shared"])
def test_other_statistics_go_on_bit_equal_too(bn_stats, tmp_path):
    def hook(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    tiny_fit(tmp_path / "whole", bn_stats=bn_stats)
    try:
        tiny_fit(tmp_path / "broken", hook, bn_stats=bn_stats)
    except Interrupted:
        pass
    tiny_fit(tmp_path / "broken", bn_stats=bn_stats)
    same_runs(tmp_path / "broken", tmp_path / "whole")
    assert not list((tmp_path / "whole" / "checkpoints").glob("*_clean.pt"))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(Refusal, match="not finite in epoch 1") as refused:
        tiny_fit(tmp_path / "run", lr=1e30)
    assert "--lr" in str(refused.value) and "intact" in str(refused.value)
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"checkpoint_init.pt"}
    weights = load_checkpoint(tmp_path / "run" / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    assert all(t.isfinite().all() for t in weights.values())


def poison(path, at, batch=4, then=None):
    """The weights become nan in step `at`."""
    def hook(step, model):
        if step == at:
            model[5].weight.register_hook(lambda gradient: gradient * math.nan)
        if then:
            then(step)

    return tiny_fit(path, hook, batch=batch, with_model=True)


@pytest.mark.parametrize("step", [0, 1, STEPS - 1])  # the last step's weights show in no loss of the epoch
def test_a_later_bad_epoch_leaves_the_earlier_ones(step, unbroken, tmp_path):
    with pytest.raises(Refusal, match="not finite in epoch 2"):
        poison(tmp_path / "run", STEPS + step)
    latest = load_checkpoint(tmp_path / "run" / "checkpoints" / "checkpoint_latest.pt")
    assert latest["training"]["epoch"] == 1 and latest["epoch"] == 0
    assert all(t.isfinite().all() for t in latest["model"]["state_dict"].values())
    tiny_fit(tmp_path / "run")  # and this is where a mended machine goes on
    same_runs(tmp_path / "run", unbroken)


def test_a_signal_does_not_save_bad_weights(unbroken, tmp_path):
    def then(step):
        if step == STEPS + 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Refusal, match="not finite in epoch 2"):
        poison(tmp_path / "run", STEPS + 1, then=then)
    tiny_fit(tmp_path / "run")
    same_runs(tmp_path / "run", unbroken)


# ---- the folder ----------------------------------------------------------------------------------------------


def test_other_settings_are_refused_before_anything_is_touched(unbroken, tmp_path):
    run = RunFolder(unbroken, {"seed": 1, "lr": 0.1}, "another -msg")
    with pytest.raises(Refusal, match="seed was 0, is 1.*another -msg or --overwrite"):
        run.check(False)
    run.check(True)
    # where a run is computed and written, not what it computes
    RunFolder(unbroken, {"seed": 0, "lr": 0.1, "device": "cuda", "dir": "elsewhere"}, "").check(False)
    later = RunFolder(unbroken, {"seed": 0, "lr": 0.1, "new": 0.0}, "")  # a later version's flag, not passed
    later.check(False)
    assert later.settings == {"seed": 0, "lr": 0.1}  # what a commitment says stays what it was
    with pytest.raises(Refusal, match="new was None, is 0.1"):
        RunFolder(unbroken, {"seed": 0, "lr": 0.1, "new": 0.1}, "").check(False)


def test_overwrite_begins_anew(unbroken, tmp_path):
    tiny_fit(tmp_path / "run", lr=0.5)
    (tmp_path / "run" / "summary.json").write_text("{}")
    tiny_fit(tmp_path / "run", overwrite=True)
    same_runs(tmp_path / "run", unbroken)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"] == {"seed": 0, "lr": 0.1}


def test_killed_while_overwriting_nothing_old_goes_on_as_new(unbroken, tmp_path, monkeypatch):
    real = Path.unlink
    for fatal in range(1, 12):
        path, count = tmp_path / str(fatal), [0]
        tiny_fit(path, lr=0.5)
        (path / "summary.json").write_text("{}")

        def unlink(self, missing_ok=False, count=count, fatal=fatal):
            count[0] += 1
            if count[0] > fatal:
                raise Death
            real(self, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(Death) as death:
            tiny_fit(path, overwrite=True)
        del death
        monkeypatch.setattr(Path, "unlink", real)
        assert not (path / "summary.json").exists()
        if (path / "run.json").exists():
            with pytest.raises(Refusal, match="other settings"):
                tiny_fit(path)
        else:
            tiny_fit(path)
            same_runs(path, unbroken)


def test_checkpoints_of_another_program_are_not_continued(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"model": {}}, tmp_path / "run" / "checkpoints" / "checkpoint_latest.pt")
    with pytest.raises(Refusal, match="another program.*--overwrite"):
        tiny_fit(tmp_path / "run")
    tiny_fit(tmp_path / "run", overwrite=True)


def test_damaged_settings_are_refused_and_overwrite_is_the_way_out(tmp_path):
    tiny_fit(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"settings": ')
    with pytest.raises(Refusal, match="damaged.*--overwrite"):
        tiny_fit(tmp_path / "run")
    tiny_fit(tmp_path / "run", overwrite=True)


def test_a_second_process_is_refused_and_the_lock_ends_with_its_holder(tmp_path):
    def hook(step):
        if step == 2:
            with pytest.raises(Refusal, match="in use by another process"):
                tiny_fit(tmp_path / "run")
            with pytest.raises(Refusal, match="in use by another process"):  # nor may it be removed
                tiny_fit(tmp_path / "run", overwrite=True)

    run = tiny_fit(tmp_path / "run", hook)
    assert len(run.rows()) == EPOCHS
    del run
    tiny_fit(tmp_path / "run")


@pytest.mark.slow
def test_a_machine_without_git_trains_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tiny_fit(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["git_commit"] is None
    assert about["command"] and about["device"] == "cpu" and about["torch"] and about["python"] and about["started"]


def test_find_names_what_it_looked_for(unbroken, tmp_path):
    assert find_checkpoint(unbroken).name == "checkpoint_nat_best.pt"
    assert find_checkpoint(unbroken, "last").name == "checkpoint_latest.pt"
    assert find_checkpoint(unbroken, "val", "clean").name == "checkpoint_nat_best_clean.pt"
    assert find_checkpoint(unbroken, "last", "clean").name == "checkpoint_latest_clean.pt"
    with pytest.raises(Refusal, match=f"no run in {tmp_path}/nothing"):
        find_checkpoint(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="no checkpoint .*/checkpoint_nat_best_clean.pt.*--bn-stats paper"):
        find_checkpoint(tmp_path / "empty", "val", "clean")


# ---- checkpoints are data -------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o)),
                                    lambda o, p: torch.save(o, p, _use_new_zipfile_serialization=False)])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(writer, tmp_path):
    writer({"model": Bomb(tmp_path / "boom")}, tmp_path / "evil.pt")
    with pytest.raises(Refusal, match="evil.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "boom").exists()
    with pytest.raises(pickle.UnpicklingError):  # even where numpy's scalars are let in
        torch.load(tmp_path / "evil.pt", weights_only=True)


def test_truncated_empty_and_foreign_files_are_refused(tmp_path):
    save_checkpoint(tmp_path / "whole.pt", {"model": {"state_dict": {"w": torch.rand(1000)}, "type": "res18"}})
    content = (tmp_path / "whole.pt").read_bytes()
    for keep in (0, 1, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.pt").write_bytes(content[:keep])
        with pytest.raises(Refusal, match="cut.pt"):
            load_checkpoint(tmp_path / "cut.pt")
    (tmp_path / "text.pt").write_text("no checkpoint at all\n" * 50)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("text.pt", "list.pt", "module.pt"):
        with pytest.raises(Refusal, match=name):
            load_checkpoint(tmp_path / name)
    with pytest.raises(Refusal, match="does not exist"):
        load_checkpoint(tmp_path / "missing.pt")


def trigger_set(m=6, k=1):
    g = torch.Generator().manual_seed(0)
    return TriggerSet(torch.randint(0, 256, (m, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(m) % 10,
                   torch.randint(0, 7, (m, k), generator=g), torch.arange(m * k).view(m, k))


@pytest.mark.parametrize("name, classes, width", [("res18", 10, 4), ("res50", 7, 4), ("vgg11", 100, 8)])
def test_pack_and_unpack(name, classes, width, tmp_path):
    model = models.build(name, classes, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), width)
    model(torch.rand(8, 3, 32, 32))  # running statistics of its own
    trigger = trigger_set(k=2)
    about = {"classes": ["a"] * classes}
    packed = pack_checkpoint(model, name, epoch=3, about=about, **pack_triggers(trigger))
    save_checkpoint(tmp_path / "one.pt", packed)
    checkpoint = load_checkpoint(tmp_path / "one.pt")
    again, triggers = unpack_source(checkpoint, "one.pt")
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(again(x), model.eval()(x)) and not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert all(torch.equal(a, b) for a, b in zip(trigger, triggers))
    assert checkpoint["epoch"] == 3 and len(checkpoint["about"]["classes"]) == classes
    assert unpack_source(pack_checkpoint(model, name), "x")[1] is None
    torch.load(tmp_path / "one.pt", weights_only=True)  # plain tensors, numbers, strings: no exception needed


@pytest.mark.parametrize("spoil", [
    lambda c: c.pop("model"), lambda c: c["model"].pop("type"), lambda c: c["model"].update(type="res999"),
    lambda c: c["model"].update(type="vgg11"), lambda c: c["model"].update(type="res34"),
    lambda c: c["model"]["state_dict"].pop("1.bn1.weight"), lambda c: c["model"].update(state_dict=3),
    lambda c: c["model"]["state_dict"].update({"1.linear.bias": torch.zeros(3)}),
    lambda c: c["query_model"]["state_dict"].update(response=torch.zeros(3)),
    lambda c: c["query_model"]["state_dict"].update(query=torch.zeros(6, 3, 28, 28)),
    lambda c: c["query_model"]["state_dict"].pop("query"),
    lambda c: c.update(query_model=None),
])
def test_parts_that_do_not_fit_are_refused(spoil):
    checkpoint = pack_checkpoint(models.build("res18", 10, width=4), "res18", **pack_triggers(trigger_set()))
    spoil(checkpoint)
    with pytest.raises(Refusal, match="here.pt does not hold"):
        unpack_source(checkpoint, "here.pt")


def official(path, m=6, **more):
    """A checkpoint as the official code pickles it; returns the model."""
    torch.manual_seed(5)
    model = models.build("res18", 10, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2), width=4)
    model(torch.rand(16, 3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    optimizer.param_groups[0]["lr"] = np.interp(7, [0, 100, 150], [0.1, 0.01, 0.001])  # a numpy float64
    trigger = trigger_set(m)
    state = {"query": trigger.images.float() / 255, "response": trigger.labels,
             "original_response": trigger.true_labels[:, 0], "dummy_param": torch.zeros(0)}
    torch.save({"model": {"state_dict": model.state_dict(), "type": "res18"},
                "query_model": {"state_dict": state, "type": "stochastic"}, "optimizer": optimizer.state_dict(),
                "epoch": 41, "best": np.float64(0.88), "seen": np.int64(3), "rate": np.float32(0.5), **more}, path)
    return model.eval(), trigger


def test_an_official_checkpoint_can_be_read(tmp_path):
    model, trigger = official(tmp_path / "official.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "official.pt", weights_only=True)  # which is why numpy's scalars are let in
    checkpoint = load_checkpoint(tmp_path / "official.pt")
    assert float(checkpoint["optimizer"]["param_groups"][0]["lr"]) == pytest.approx(0.1 - 0.09 * 0.07)
    again, triggers = unpack_source(checkpoint, "official.pt")
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    for a, b in zip(triggers[:3], trigger[:3]):  # pictures too: float pixels are the 8-bit ones
        assert torch.equal(a, b)
    assert triggers.sources.shape == (6, 0)


def test_an_official_checkpoint_of_an_older_numpy_can_be_read(tmp_path):
    """Before 2.0 numpy pickled its scalars under `numpy.core`; torch.save's file is a zip of a pickle and storages."""
    official(tmp_path / "new.pt")
    renamed = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "new.pt") as old, zipfile.ZipFile(renamed, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            new.writestr(item.filename, content)
    (tmp_path / "old.pt").write_bytes(renamed.getvalue())
    assert float(load_checkpoint(tmp_path / "old.pt")["best"]) == 0.88


def test_an_official_checkpoint_without_true_labels_can_be_read(tmp_path):
    official(tmp_path / "official.pt")
    checkpoint = load_checkpoint(tmp_path / "official.pt")
    del checkpoint["query_model"]["state_dict"]["original_response"]
    _, trigger = unpack_source(checkpoint, "official.pt")
    assert trigger.true_labels.shape == (6, 0)


def test_writes_are_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_find_takes_the_checkpoint_that_the_run_reports(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in ("nat_best", "latest"):
        (checkpoints / f"checkpoint_{name}.pt").touch()
    assert find_checkpoint(tmp_path, None).name == "checkpoint_nat_best.pt"  # as long as there is no summary
    for select, name in (("last", "latest"), ("val", "nat_best")):
        (tmp_path / "summary.json").write_text(json.dumps({"select": select}))
        assert find_checkpoint(tmp_path, None) == checkpoints / f"checkpoint_{name}.pt"


def test_batchnorm_is_put_right_after_an_error():

    model = models.place(models.build("vgg11", 3, width=4), "cpu").train()
    statistics = RunningStatistics(model, "paper")
    layer = statistics.layers[0]
    before = layer.running_mean.clone()
    with pytest.raises(ZeroDivisionError), statistics.clean_batch():
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), RunningStatistics(model, "clean").trigger_batch():
        raise ZeroDivisionError
    assert layer.momentum == 0.1 and layer.track_running_stats and torch.equal(layer.running_mean, before)
