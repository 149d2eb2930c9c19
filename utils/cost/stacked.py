"""Several seeds trained as one batched model, a lever for one large GPU: `utils.benchmark --stacked S`.

The ascent's kernels work on 25 images and leave most of a large GPU idle. Here S models are stacked, (S, ...) each
weight, and every operation works for all of them: about as many a step as for one seed, for S times the work; both
numbers are counted. No training uses this yet; it is measured beside S ordinary steps.
"""

import statistics
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state
from torch.utils._python_dispatch import TorchDispatchMode

from utils.cost.contenders import LR, PIXEL, WEIGHT, WEIGHT_DECAY, Contenders, image_passes
from utils.cost.stacked_layers import ReluApart, stack_layers, stack_weight
from utils.cost.timing import median_ratio, time_by_turns
from utils.training.cuda_graph import RecordedStep
from utils.watermark.ascent import ascend
from utils.watermark.running_statistics import RunningStatistics

SECONDS = 0.5  # each timing repeats its call for about this long


class StackedSeeds:
    """`stacked(row)` is one margin step (Eq. 4, reduction "sum", BatchNorm statistics "clean") of S seeds at once.

    models    S models of one architecture, in train mode; the first is changed and of no other use afterwards
    weights   their weights, (S, ...) each, and `buffers` theirs; both are copies
    triggers  x_q (S, m, 3, 32, 32) in [0, 1] and y_q (S, m) on the device
    row       the seeds' rows of an epoch's plan, stacked: order (S, B), shift (S, B, 2), flip (S, B), picks (S, b)

    With `graph` a step is recorded on CUDA, see `RecordedStep`. Convolutions keep the models' memory format.
    """

    def __init__(self, models, batches, triggers, *, weight, steps, step_size, lr, weight_decay, amp=False,
                 graph=False, log=print):
        self.base, self.batches, self.amp, self.seeds = models[0], batches, amp, len(models)
        self.x_q, self.y_q = triggers
        self.weight, self.ascents, self.step_size = weight, steps, step_size
        stacked, self.buffers = stack_module_state(models)
        memory_format = self.base[0].memory_format
        self.base[0].memory_format = torch.contiguous_format  # vmap knows no other: the first convolution sets it
        stack_layers(self.base, memory_format)
        self.weights = {name: stack_weight(w, memory_format) for name, w in stacked.items()}
        device = self.x_q.device
        fused = device.type in ("cpu", "cuda")  # where the rate lives, and its type, are those of `Step`
        rate = torch.tensor(float(lr), dtype=torch.float32 if device.type == "cuda" else torch.float64,
                            device=device if fused else "cpu")
        self.optimizer = torch.optim.SGD(self.weights.values(), lr=rate, weight_decay=weight_decay, fused=fused)
        self.statistics = RunningStatistics(self.base, "clean")
        self.recorder = RecordedStep(device, self.optimizer, log) if graph else None

    def __call__(self, row) -> None:
        if self.recorder is None:
            self._train(row)
        else:
            self.recorder(self._train, row)

    def logits(self, weights, x):
        """Logits (S * n, C) of x (S * n, 3, 32, 32), the seeds' images one after the other."""
        one_seed = lambda weights, buffers, x: functional_call(self.base, (weights, buffers), (x,))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp), ReluApart():
            logits = torch.vmap(one_seed)(weights, self.buffers, x.unflatten(0, (self.seeds, -1))).flatten(0, 1)
        return logits.float() if self.amp else logits

    def _cast_once(self):
        """The weights, under bf16 those of convolutions and linear layers cast once for all passes on triggers.

        Autocast keeps casts of weights alone, not of the views of them that the layers read; see `cast_weights_once`.
        """
        return {name: w.bfloat16() if self.amp and w.dim() > 2 else w for name, w in self.weights.items()}

    def _train(self, row) -> None:
        *place, picks = row
        x, y = self.batches.batch(*(part.flatten(0, 1) for part in place))
        seed = torch.arange(self.seeds, device=picks.device)[:, None]
        x_q, y_q = self.x_q[seed, picks].flatten(0, 1), self.y_q[seed, picks].flatten()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.logits(self.weights, x)
        with self.statistics.trigger_batch():
            weights = self._cast_once()
            frozen = {name: w.detach() for name, w in weights.items()}
            # the mean over all seeds' triggers has the signs of each seed's own mean
            x_q = ascend(lambda x: self.logits(frozen, x), x_q, y_q, steps=self.ascents, step_size=self.step_size,
                         eps=self.ascents * self.step_size)
            logits_q = self.logits(weights, x_q)
        # S times the mean over all seeds is the sum of the seeds' means
        (self.seeds * (F.cross_entropy(logits, y) + self.weight * F.cross_entropy(logits_q, y_q))).backward()
        self.optimizer.step()


class CountedOperations(TorchDispatchMode):
    """Context that counts torch's operations on data: `count`. Views and allocations are left out.

    On a GPU an operation is one kernel, or a few: a convolution's backward pass is one operation and two kernels or
    more. An operation of another thread is not seen.
    """

    ALLOCATIONS = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::detach")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name.startswith("aten::") and not function.is_view and not name.startswith(self.ALLOCATIONS):
            self.count += 1
        return function(*args, **(kwargs or {}))


def count_operations(contenders, seeds: int, amp: bool) -> tuple[int, int]:
    """(operations of one seed's ordinary step, of a stacked step), neither recorded nor cut in halves."""
    contenders = Contenders(replace(contenders.settings, graph=False), contenders.device)
    one, _, step = contenders.our_step("margin", amp)
    step.halves = None  # a half runs in a thread of its own
    counts = []
    for call in (one, stacked_step(contenders, seeds, amp)):
        call()  # what the first call alone does, such as making the sums
        with CountedOperations() as counted:
            call()
        counts.append(counted.count)
    return tuple(counts)


def stacked_step(contenders, seeds: int, amp: bool):
    """A call of it is one margin step of all seeds, each on rows of its own."""
    settings = contenders.settings
    stacked = StackedSeeds(
        [contenders.model().train() for _ in range(seeds)], contenders.batches,
        (contenders.x_q.expand(seeds, -1, -1, -1, -1), contenders.y_q.expand(seeds, -1)), weight=WEIGHT,
        steps=settings.steps, step_size=PIXEL, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp, graph=settings.graph)
    plan = contenders.rows(contenders.objective("margin", contenders.model(), amp))
    row = [torch.stack(parts) for parts in zip(*(next(plan) for _ in range(seeds)))]
    return lambda: stacked(row)


def measure_stacked(contenders, seeds: int, rounds: int) -> list[dict]:
    """A row for fp32 and one for bf16: milliseconds of one seed's ordinary step and of a stacked step of all seeds.

    `gain` is how many times as fast the stacked step is as `seeds` ordinary ones; `image_passes` counts its work, and
    `operations` the calls that launch it, see `count_operations`.
    """
    settings, rows = contenders.settings, []
    for amp in (False, True):
        operations, stacked_operations = count_operations(contenders, seeds, amp)
        calls = {"one": contenders.our_step("margin", amp)[0], "stacked": stacked_step(contenders, seeds, amp)}
        times = time_by_turns(calls, rounds, contenders.device, SECONDS)
        rows.append({
            "seeds": seeds, "precision": "amp" if amp else "fp32",
            "one_seed_ms_per_step": 1e3 * statistics.median(times["one"]),
            "stacked_ms_per_step": 1e3 * statistics.median(times["stacked"]),
            "gain": seeds * median_ratio(times["one"], times["stacked"]),
            "one_seed_operations": operations, "stacked_operations": stacked_operations,
            "image_passes": seeds * image_passes("margin", "ours", settings),
        })
    return rows


def format_stacked(rows) -> str:
    """The rows of `measure_stacked` as text."""
    return "\n".join(
        f"{r['precision']:<5}one seed {r['one_seed_ms_per_step']:.2f} ms a step, {r['seeds']} stacked "
        f"{r['stacked_ms_per_step']:.2f} ms: {r['gain']:.2f} times as fast as one after the other; "
        f"{r['seeds']} x {r['one_seed_operations']} operations become {r['stacked_operations']}, "
        f"for {r['image_passes']} image passes" for r in rows)
