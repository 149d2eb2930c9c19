"""Stacked seeds are the seeds: equal in float64 to separate trainings of ours."""

import copy
import json
from unittest import mock

import fake_cuda
import pytest
import torch
from fake_cuda import FakeCuda, NoHostWork
from small_steps import B, K, T, rows_of, setting
from tape import Tape
from torch.utils._python_dispatch import TorchDispatchMode

import models
from utils.benchmark import main as benchmark_main
from utils.cost.contenders import Contenders
from utils.cost.settings import parse_benchmark
from utils.cost.stacked import CountedOperations, StackedSeeds, count_operations
from utils.training.step import Step
from utils.watermark.objective import WatermarkObjective

S, PIXEL = 3, 1 / 255


class Seen(TorchDispatchMode):
    """Context that keeps torch's operations: `calls` is [(name, arguments)]."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append((function.name(), args))
        return function(*args, **(kwargs or {}))


def seeds_in_float64(name, memory_format=torch.contiguous_format):
    """S models, `Batches`, and triggers x (S, M, 3, 32, 32) and y (S, M), of each seed its own."""
    _, batches, x_q, y_q = setting()
    batches.dtype = torch.float64
    torch.manual_seed(4)
    seeds = [models.build(name, 5, (0.5,) * 3, (0.25,) * 3, 4).double().train() for _ in range(S)]
    x = torch.stack([x_q.double().roll(i, 0) for i in range(S)])
    y = torch.stack([y_q.roll(i, 0) for i in range(S)])
    for model in seeds:
        model[0].memory_format = memory_format
        model.to(memory_format=memory_format)
    return seeds, batches, x, y


def stack(seeds, batches, triggers, **more):
    return StackedSeeds(seeds, batches, triggers, weight=0.7, steps=K, step_size=PIXEL, lr=0.1, weight_decay=1e-4,
                        **more)


def rows_of_seeds(batches, x_q, y_q, n):
    """n rows for stacked seeds, (S, ...) each part, every seed with its own."""
    objective = WatermarkObjective(torch.nn.Identity(), x_q[0], y_q[0], weight=0.7, reduction="sum", batch=T, steps=K,
                                   step_size=PIXEL, eps=K * PIXEL, bn_stats="clean")
    plans = [(rows_of(batches, objective, seed=i) + rows_of(batches, objective, seed=S + i))[:n] for i in range(S)]
    return [[torch.stack(parts) for parts in zip(*rows)] for rows in zip(*plans)]


def trained(name, shared_triggers=False, memory_format=torch.contiguous_format):
    """(largest difference of weights, of buffers) between three stacked seeds and three separate ones."""
    seeds, batches, x, y = seeds_in_float64(name, memory_format)
    stacked = stack(copy.deepcopy(seeds), batches, (x[:1].expand_as(x), y) if shared_triggers else (x, y))
    rows = rows_of_seeds(batches, x, y, 3)
    for i, model in enumerate(seeds):
        objective = WatermarkObjective(model, x[i], y[i], weight=0.7, reduction="sum", batch=T, steps=K,
                                       step_size=PIXEL, eps=K * PIXEL, bn_stats="clean")
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
        step.halves = None
        for row in rows:
            step([part[i] for part in row])
    for row in rows:
        stacked(row)

    def gap(ours, named):
        pairs = [(ours[key][i], value) for i, model in enumerate(seeds) for key, value in named(model)]
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    return gap(stacked.weights, torch.nn.Module.named_parameters), gap(stacked.buffers, torch.nn.Module.named_buffers)


@pytest.mark.parametrize("name", ["res18", "vgg11"])
def test_stacked_seeds_equal_separate_ones(name):
    """Weights, running averages and counters of batches, after three steps of batch, ascent and update."""
    weights, buffers = trained(name)
    assert weights <= 1e-9 and buffers <= 1e-9


def test_stacked_seeds_equal_separate_ones_in_channels_last():
    weights, buffers = trained("res18", memory_format=torch.channels_last)
    assert weights <= 1e-9 and buffers <= 1e-9


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layers_keep_the_memory_format(memory_format):
    """All convolutions and BatchNorms of a step see images in it, and no weight is copied into it."""
    seeds, batches, x, y = seeds_in_float64("res18", memory_format)
    stacked = stack(seeds, batches, (x, y))
    with Seen() as seen:
        stacked(rows_of_seeds(batches, x, y, 1)[0])
    read = [t for name, args in seen.calls if name in ("aten::convolution", "aten::native_batch_norm")
            for t in args[:2] if t is not None and t.dim() == 4]
    assert len(read) == 3 * 20 * (2 + K) and all(t.is_contiguous(memory_format=memory_format) for t in read)
    assert all(w.grad.flatten(0, 1).is_contiguous(memory_format=memory_format)
               for w in stacked.weights.values() if w.dim() == 5)


def test_amp_convolves_in_bf16_and_casts_each_weight_twice():
    """Once for the clean images, and once for the passes on triggers; a CPU's autocast misses vmap's convolutions."""
    seeds, batches, x, y = seeds_in_float64("res18")
    batches.dtype = torch.float32
    stacked = stack([model.float() for model in seeds], batches, (x.float(), y), amp=True)
    with Seen() as seen:
        stacked(rows_of_seeds(batches, x, y, 1)[0])
    convolved = [args for name, args in seen.calls if name == "aten::convolution"]
    assert len(convolved) == 20 * (2 + K) and {t.dtype for args in convolved for t in args[:2]} == {torch.bfloat16}
    # the classes' weights are (S, 5, 32); the gradients' way back is from bf16
    cast = [args[0] for name, args in seen.calls if name == "aten::_to_copy" and args[0].dtype == torch.float32]
    sizes = {w.numel() for w in stacked.weights.values() if w.dim() == 5}
    images = {S * B * 3 * 32 * 32, S * T * 3 * 32 * 32}
    assert sum(t.numel() in sizes - images for t in cast) == 2 * 20


@pytest.mark.parametrize("name", ["res18", "vgg11"])
def test_replays_of_a_stacked_step_equal_ordinary_ones(name):
    """With the CPU's stand-in for a CUDA graph, on rows that change from step to step."""
    results = []
    for graph in (False, True):
        seeds, batches, x, y = seeds_in_float64(name)
        stacked = stack(seeds, batches, (x, y), graph=graph)
        if graph:
            stacked.recorder.record = Tape
        for row in rows_of_seeds(batches, x, y, 6):
            stacked(row)
        results.append(stacked)
    plain, replayed = results
    assert replayed.recorder.recording.operations and not replayed.recorder.failed
    for kind in ("weights", "buffers"):
        assert all(torch.equal(value, getattr(replayed, kind)[key]) for key, value in getattr(plain, kind).items())


@pytest.mark.skipif(torch.version.cuda is None, reason="autocast for CUDA needs torch built for CUDA")
@pytest.mark.parametrize("amp", [False, True])
def test_a_stacked_step_does_no_work_on_the_host(amp):
    _, batches, x_q, y_q = setting()
    x_q, y_q = x_q.expand(S, *x_q.shape), y_q.expand(S, *y_q.shape)
    row, sgd = rows_of_seeds(batches, x_q, y_q, 1)[0], torch.optim.SGD
    with FakeCuda(), torch.no_grad():  # autograd asks for a real device
        seeds = [fake_cuda.move(models.build("res18", 5, width=4).train()) for _ in range(S)]
        for name in ("padded", "labels", "span"):
            setattr(batches, name, fake_cuda.to_cuda(getattr(batches, name)))
        with mock.patch("torch.optim.SGD", lambda weights, lr, **more: sgd(list(weights), lr=0.1, **more)):
            stacked = stack(seeds, batches, (fake_cuda.to_cuda(x_q), fake_cuda.to_cuda(y_q)), amp=amp)
        with NoHostWork(list(stacked.weights.values())) as watched:
            stacked([fake_cuda.to_cuda(part) for part in row])
    assert watched.convolved == {torch.bfloat16 if amp else torch.float32}
    assert any(op.startswith("aten::_fused_") for op in watched.seen)


@pytest.mark.parametrize("name, amp", [("res18", False), ("res18", True), ("vgg11", False)])
def test_a_stacked_step_has_the_operations_of_one_seed(name, amp):
    """Within a tenth, whatever the number of seeds; ordinary steps of all seeds have as many for each."""
    settings = parse_benchmark(["--model", name, "--width", "4", "--batch-size", str(B), "--trigger-batch", str(T),
                                "--steps", str(K), "--num-query", "8", "--device", "cpu"])
    contenders = Contenders(settings.on(torch.device("cpu")), torch.device("cpu"))
    one, two_stacked = count_operations(contenders, 2, amp)
    assert count_operations(contenders, 4, amp) == (one, two_stacked) and two_stacked <= 1.1 * one


def test_counted_operations_are_those_on_data():
    x = torch.rand(2, 3)
    with CountedOperations() as counted:
        x.t().add(1).unsqueeze(0)[:, 1:].mul_(2)  # two, between views
    assert counted.count == 2


def test_seeds_that_share_triggers_are_found():
    assert trained("res18", shared_triggers=True)[0] > 1e-6


def test_the_benchmark_times_stacked_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.cost.stacked.SECONDS", 0.01)
    file = tmp_path / "stacked.json"
    benchmark_main(["--stacked", "2", "--model", "res18", "--width", "2", "--batch-size", str(B),
                    "--trigger-batch", "2", "--steps", "1", "--num-query", "4", "--device", "cpu", "--rounds", "1",
                    "--json", str(file)])
    rows = json.loads(file.read_text())["stacked"]
    assert [row["precision"] for row in rows] == ["fp32", "amp"] and all(row["gain"] > 0 for row in rows)
    assert rows[0]["image_passes"] == 2 * (3 * B + (3 + 2 * 1) * 2)
    assert all(0 < row["stacked_operations"] <= 1.1 * row["one_seed_operations"] for row in rows)
    assert "2 stacked" in capsys.readouterr().out


@pytest.mark.parametrize("flags, said", [(["--rivals"], "--rivals"), (["--compile"], "--compile"),
                                         (["--components"], "--components")])
def test_stacked_is_timed_alone(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark_main(["--stacked", "2", *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err
