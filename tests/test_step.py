"""The fast step computes what the plain one computes."""

import contextlib
import copy
import json

import pytest
import torch
import torch.nn.functional as F
from test_scripts import good
from torch.utils.flop_counter import FlopCounterMode

import models
from utils.attacks.losses import soft_loss
from utils.attacks.objectives import ExtractionObjective
from utils.benchmark import main as benchmark_main
from utils.cost import official_rendering
from utils.cost.contenders import Contenders
from utils.cost.rivals import rival_sums
from utils.cost.settings import TIMED_OBJECTIVES, parse_benchmark
from utils.data.batches import Batches
from utils.data.images import Images
from utils.runs.checkpoints import load_checkpoint
from utils.training.objective import PlainObjective
from utils.training.step import Step, autocast_forward
from utils.watermark.objective import WatermarkObjective
from utils.watermark.two_thread_step import TwoThreadStep, split_threads

B, T, K, M = 8, 4, 3, 10
NUMBERS = {"weight": 0.1, "step_size": 1 / 255}


def small(width=8, placed=False):
    torch.manual_seed(1)
    model = models.build("res18", 5, (0.5,) * 3, (0.25,) * 3, width)
    return (models.place(model, "cpu") if placed else model).train()


def setting(width=8, placed=False):
    model = small(width, placed)
    images = Images(torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 5, (32,)),
                    torch.arange(32))
    return model, Batches(images, B, True), torch.rand(M, 3, 32, 32), torch.randint(0, 5, (M,))


def watermark(model, x_q, y_q, steps, mode="paper", reduction="joint"):
    return WatermarkObjective(model, x_q, y_q, reduction=reduction, batch=T, steps=steps, eps=steps / 255,
                            bn_stats=mode, **NUMBERS)


def rows_of(batches, objective, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return list(zip(*batches.plan(generator), objective.sample(batches.steps, generator)))


def apart(one, other):
    """Largest difference between two models' weights and buffers."""
    return max(float((a.double() - b.double()).abs().max()) for a, b in
               zip(one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("steps", [K, 0])
def test_our_step_equals_the_official_one(steps):
    model, batches, x_q, y_q = setting()
    plain = copy.deepcopy(model)
    objective = watermark(model, x_q, y_q, steps)
    row = rows_of(batches, objective)[0]
    Step(model, objective, batches, lr=0.1, weight_decay=1e-4)(row)
    x, y = batches.batch(*row[:3])
    optimizer = official_rendering.plain_sgd(plain, 0.1, 1e-4)
    official_rendering.watermark_step(plain, optimizer, x.contiguous(), y, x_q[row[3]], y_q[row[3]], steps=steps,
                                      **NUMBERS)
    assert apart(small(), model) > 1e-3
    assert apart(model, plain) <= 1e-6


def test_our_soft_step_equals_the_official_one():
    model, batches, _, _ = setting()
    plain, teacher = copy.deepcopy(model), small().eval()
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    objective = ExtractionObjective(frozen, soft_loss, False)
    row = rows_of(batches, objective)[0]
    Step(model, objective, batches, lr=0.1, weight_decay=1e-4)(row)
    x, y = batches.batch(*row[:3])
    official_rendering.soft_step(plain, teacher, official_rendering.plain_sgd(plain, 0.1, 1e-4), x.contiguous(), y)
    assert apart(small(), model) > 1e-3
    assert apart(model, plain) <= 1e-6


def test_channels_last_is_the_same_function():
    """In fp64, where rounding flips no ReLU: in fp32 one that is zero up to rounding may, in either memory format."""
    results = []
    for placed in (True, False):
        torch.manual_seed(3)
        model, batches, x_q, y_q = setting(width=16, placed=placed)
        model, batches.dtype = model.double(), torch.float64
        objective = watermark(model, x_q.double(), y_q, K)
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
        step(rows_of(batches, objective)[0])
        results.append(model)
    assert results[0][1].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert apart(*results) <= 1e-9


@pytest.mark.parametrize("mode", ["paper", "clean", "shared"])
def test_fixed_buffers_and_fused_update_are_bit_equal(mode):
    """The path that CUDA records, not recorded here, and a loop written out with torch's plain optimiser."""
    results = []
    for graph in (True, False, None):
        torch.manual_seed(4)
        model, batches, x_q, y_q = setting()
        objective = watermark(model, x_q, y_q, K, mode)
        rows = rows_of(batches, objective)
        if graph is None:
            optimizer, total = official_rendering.plain_sgd(model, 0.1, 1e-4), 0.0
            for rate, row in zip((0.1, 0.1, 0.01, 0.01), rows):
                optimizer.param_groups[0]["lr"] = rate
                loss, stats = objective(model, *batches.batch(*row[:3]), row[3])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total = total + stats["loss"]
            sums = {"loss": float(total)}
        else:
            step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, graph=graph)
            for rate, row in zip((0.1, 0.1, 0.01, 0.01), rows):
                step.rate.fill_(rate)
                step(row)
            addresses = {name: value.data_ptr() for name, value in step.sums.items()}
            sums = step.take_sums()
            assert {name: value.data_ptr() for name, value in step.sums.items()} == (addresses if graph else {})
            assert not any(step.take_sums().values())
        results.append((model, sums["loss"], objective.statistics.state()))
    for model, loss, clean in results[1:]:
        assert apart(model, results[0][0]) == 0 and loss == results[0][1]
        assert all(torch.equal(clean[name], results[0][2][name]) for name in clean)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(mode, steps, reduction, amp, how, restarts=()):
    """(model, sums, clean averages) after four steps; before each of `restarts` a new `Step` goes on."""
    torch.manual_seed(7)
    model, batches, x_q, y_q = setting(width=16, placed=True)
    objective = watermark(model, x_q, y_q, steps, mode, reduction)
    rows, sums = rows_of(batches, objective), {}
    make = lambda: Step(model, objective, batches, lr=0.1, weight_decay=1e-4, amp=amp)
    step = make()
    for i, row in enumerate(rows):
        step = make() if i in restarts else step
        if how == "halves" and not steps:  # else it is chosen
            step.two_threads = TwoThreadStep(model, objective, lambda twin: autocast_forward(twin, amp), (1, 1))
        assert bool(step.two_threads) == (how == "halves")
        step(row)
        sums = {name: sums.get(name, 0) + value for name, value in step.take_sums().items()}
    return model, sums, objective.statistics.state()


@pytest.mark.parametrize("mode, steps, reduction, amp", [
    ("paper", 2, "joint", False), ("paper", 2, "sum", True), ("clean", 2, "sum", False), ("paper", 0, "joint", False)])
def test_halves_side_by_side_equal_the_halves_in_turn(mode, steps, reduction, amp, two_threads):
    """Weights, losses and clean averages bit by bit; averages that triggers enter up to the order of rounding."""
    torch.set_num_threads(1)
    model, sums, clean = trained(mode, steps, reduction, amp, "in turn")
    torch.set_num_threads(2)
    other, other_sums, other_clean = trained(mode, steps, reduction, amp, "halves")
    assert sums == other_sums and sums["loss_wat"] > 0
    assert all(torch.equal(clean[name], other_clean[name]) for name in clean)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert apart(model, other) <= (0 if mode == "clean" else 1e-6)  # counters of batches too
    assert torch.get_num_threads() == 2


def test_a_run_that_goes_on_side_by_side_is_bit_equal(two_threads):
    whole, sums, _ = trained("paper", 2, "joint", False, "halves")
    parts, other_sums, _ = trained("paper", 2, "joint", False, "halves", restarts=(1, 3))
    assert apart(whole, parts) == 0 and sums == other_sums


class Other(WatermarkObjective):
    pass


def test_halves_are_apart_only_where_that_is_faster(two_threads, monkeypatch):
    model, batches, x_q, y_q = setting(width=16, placed=True)
    forward_of = lambda twin: autocast_forward(twin, False)
    chosen = lambda objective, model=model: objective.two_thread_step(model, batches, forward_of)
    balanced = watermark(model, x_q, y_q, 2)  # 3 * 8 passes of clean images, (3 + 2 * 2) * 4 of triggers
    assert chosen(balanced).threads == (1, 1)
    assert chosen(watermark(model, x_q, y_q, 0)) is None  # 24 against 12: one thread would wait
    assert chosen(watermark(model, x_q, y_q, 2, "shared")) is None  # one batch, no halves
    assert chosen(PlainObjective()) is None
    assert chosen(Other(model, x_q, y_q, reduction="sum", batch=T, steps=2, eps=1, bn_stats="paper", **NUMBERS)) is None
    assert chosen(balanced, copy.deepcopy(model).to("meta")) is None  # any other device
    assert Step(model, balanced, batches, lr=0.1, weight_decay=0, compile=True).two_threads is None
    with monkeypatch.context() as patch:
        patch.setattr("utils.watermark.two_thread_step.is_distributed", lambda: True)
        assert chosen(balanced) is None
    assert chosen(watermark(small(64), x_q, y_q, 2), small(64)) is None
    torch.set_num_threads(1)
    assert chosen(balanced) is None


def test_a_model_without_batch_norm_has_halves_too(two_threads):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(8)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 4), torch.nn.ReLU(), torch.nn.Flatten(),
                                    torch.nn.Linear(16 * 64, 5))
        _, batches, x_q, y_q = setting()
        objective = watermark(model, x_q, y_q, 2)
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
        step(rows_of(batches, objective)[0])
        assert bool(step.two_threads) == (threads == 2)
        results.append(model)
    assert apart(*results) == 0


def test_train_py_computes_the_same_with_two_threads(two_threads, tmp_path, monkeypatch):
    called, call = [], TwoThreadStep.__call__
    monkeypatch.setattr(TwoThreadStep, "__call__", lambda self, *a: called.append(self) or call(self, *a))
    weights = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        good("train", "-d", tmp_path, "-dt", "digits", "-tt", "margin", "-mt", "res18", "--width", 16, "-nq", 8,
             "--train-size", 96, "--batch-size", 32, "--trigger-batch", 14, "--steps", 2, "-ep", 1, "--amp",
             "--device", "cpu", "-msg", threads)
        checkpoint = load_checkpoint(tmp_path / f"digits_res18_margin_8_{threads}/checkpoints/checkpoint_latest.pt")
        state = checkpoint["model"]["state_dict"]
        weights.append({name: t for name, t in state.items() if "running" not in name})
    assert len(called) == 3  # steps
    assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())


def test_threads_are_shared_out_as_the_work_is():
    assert split_threads(1, 1, 1) is None and split_threads(2, 384, 325) == (1, 1) and split_threads(2, 384, 75) is None
    assert split_threads(16, 384, 325) == (9, 7)  # 384 / 9 and 325 / 7 are within a tenth of 709 / 16
    assert split_threads(3, 384, 325) is None  # 325 against 709 / 3


def test_an_error_in_the_triggers_half_is_not_lost(two_threads):
    model, batches, x_q, y_q = setting(width=16, placed=True)
    objective = watermark(model, x_q, y_q + 5, 2)  # classes that the model does not have
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
    with pytest.raises(IndexError):
        step(rows_of(batches, objective)[0])
    assert step.two_threads and torch.get_num_threads() == 2


def test_relu_in_place_is_bit_equal(monkeypatch):
    gradients = []
    for _ in range(2):
        model = small()
        x = torch.rand(B, 3, 32, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
        F.cross_entropy(model(x), torch.arange(B) % 5).backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
        relu = F.relu
        monkeypatch.setattr(F, "relu", lambda x, inplace=False, relu=relu: relu(x))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


class Nowhere(contextlib.nullcontext):
    """In place of torch's module tracker, whose hooks do not stand `autograd.grad`."""

    parents = ("Global",)


def test_counted_passes_match_the_flop_counter():
    """Forward 1, input gradient 1, full backward 2; torch's counter sees the steps themselves."""
    args = parse_benchmark(["--model", "res18", "--width", "8", "--batch-size", str(B), "--trigger-batch", str(T),
                            "--steps", str(K), "--device", "cpu", "--num-query", str(M)])
    bench = Contenders(args, torch.device("cpu"))
    for name in TIMED_OBJECTIVES:
        for rendering in ("ours", "official"):
            step = bench.ours(name, False)[0] if rendering == "ours" else bench.official(name)[0]
            counter = FlopCounterMode(display=False)
            counter.mod_tracker = Nowhere()
            with counter:
                step()
            assert counter.get_total_flops() == pytest.approx(bench.flop(name, rendering), rel=0.01)


def test_benchmark_writes_the_ratios(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.cost.measure.SECONDS", 0.01)
    monkeypatch.setattr("utils.cost.contenders.VALIDATION", 50)
    monkeypatch.setattr("utils.cost.contenders.TEST", 50)
    file = tmp_path / "cost.json"
    benchmark_main(["--model", "res18", "--width", "2", "--batch-size", "8", "--trigger-batch", "2", "--steps", "1",
                    "--num-query", "4", "--device", "cpu", "--rounds", "1", "--components", "--json", str(file)])
    result = json.loads(file.read_text())
    named = {"margin_step_fp32", "margin_step_amp", "margin_epoch_fp32", "margin_epoch_amp", "soft_step_fp32",
             "base_step_fp32"}
    assert named <= set(result["ratios"]) and all(value > 0 for value in result["ratios"].values())
    assert {(r["objective"], r["rendering"], r["precision"]) for r in result["rows"]} == {
        (o, r, p) for o in TIMED_OBJECTIVES for r, p in (("official", "fp32"), ("ours", "fp32"), ("ours", "amp"))}
    assert {p["component"] for p in result["components"]} >= {
        "data", "clean pass", "ascent", "trigger pass", "optimiser", "evaluation"}
    assert "margin_epoch_amp" in capsys.readouterr().out


def test_benchmark_of_the_rivals(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.cost.measure.SECONDS", 0.01)
    file = tmp_path / "rivals.json"
    benchmark_main(["--rivals", "--model", "res18", "--width", "2", "--batch-size", "8", "--num-query", "4", "--device",
                    "cpu", "--rounds", "1", "--json", str(file)])
    result = json.loads(file.read_text())["rivals"]
    assert all(value > 0 for value in result["ms"].values()) and "counted: 3.7 x" in capsys.readouterr().out
    assert result["times_plain"]["DI, training"] == 1


def test_sums_of_equal_parts_are_the_counted_ones():
    """Were a watermark step and a noisy draw of 64 images worth 1 and 1/2 plain step, the counts of images come out."""
    ms = dict.fromkeys(("plain step", "EWE normal step", "EWE watermark step", "DI question to a batch",
                        "EEF signs of 8 images"), 2.0) | {"RS noisy gradient": 1.0}
    sums = rival_sums(ms, steps=382, batch=128)
    assert sums["EWE, whole training"] == (pytest.approx(1.6), 1.6)
    measured, counted = sums["RS, an epoch with its robust pass"]
    assert measured == pytest.approx(1 + 2100 * 64 / (382 * 128)) and round(measured, 1) == counted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["paper", "shared"])
def test_recorded_graph_equals_ordinary_steps(mode):
    results = []
    for graph in (True, False):
        torch.manual_seed(6)
        model, batches, x_q, y_q = setting()
        model = models.place(model, "cuda")
        images = Images(batches.padded[:, 4:36, 4:36].permute(0, 3, 1, 2), batches.labels, batches.labels)
        batches = Batches(images, B, True, "cuda")
        objective = watermark(model, x_q.cuda(), y_q.cuda(), K, mode)
        said = []
        step = Step(model, objective, batches, lr=0.01, weight_decay=1e-4, graph=graph, log=said.append)
        for epoch in range(3):
            step.rate.fill_(0.01 / (epoch + 1))
            for row in rows_of(batches, objective, seed=epoch):
                step([part.cuda() for part in row])
        assert not said and (step.recorder is not None and step.recorder.graph is not None) == graph
        results.append((model.cpu(), step.take_sums()))
    assert apart(results[0][0], results[1][0]) <= 1e-3
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-2)
