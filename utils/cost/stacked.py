"""Several seeds trained as one batched model, a lever for one large GPU: `utils.benchmark --stacked S`.

The ascent's kernels work on 25 images and leave most of a large GPU idle. Here S models are stacked, (S, ...) each
weight, and every kernel works for all of them: as many kernels a step as for one seed, for S times the work. No
training uses this yet; it is measured beside S ordinary steps.
"""

import statistics

import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state

from utils.cost.contenders import LR, PIXEL, WEIGHT, WEIGHT_DECAY, image_passes
from utils.cost.timing import median_ratio, time_by_turns
from utils.training.cuda_graph import RecordedStep
from utils.watermark.ascent import ascend
from utils.watermark.running_statistics import RunningStatistics

SECONDS = 0.5  # each timing repeats its call for about this long


class StackedSeeds:
    """`stacked(row)` is one margin step (Eq. 4, reduction "sum", BatchNorm statistics "clean") of S seeds at once.

    models    S models of one architecture, in train mode; `weights` and `buffers` hold stacked copies, (S, ...) each
    triggers  x_q (S, m, 3, 32, 32) in [0, 1] and y_q (S, m) on the device
    row       the seeds' rows of an epoch's plan, stacked: order (S, B), shift (S, B, 2), flip (S, B), picks (S, b)

    With `graph` a step is recorded on CUDA, see `RecordedStep`. Contiguous memory: vmap knows no channels-last.
    """

    def __init__(self, models, batches, triggers, *, weight, steps, step_size, lr, weight_decay, amp=False,
                 graph=False, log=print):
        self.base, self.batches, self.amp, self.seeds = models[0], batches, amp, len(models)
        self.x_q, self.y_q = triggers
        self.weight, self.ascents, self.step_size = weight, steps, step_size
        self.base[0].memory_format = torch.contiguous_format
        self.weights, self.buffers = stack_module_state(models)
        self.weights = {name: w.contiguous().detach().requires_grad_() for name, w in self.weights.items()}
        device = self.x_q.device
        rate = torch.tensor(float(lr), dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
        self.optimizer = torch.optim.SGD(self.weights.values(), lr=rate, weight_decay=weight_decay, fused=True)
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
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            logits = torch.vmap(one_seed)(weights, self.buffers, x.unflatten(0, (self.seeds, -1))).flatten(0, 1)
        return logits.float() if self.amp else logits

    def _train(self, row) -> None:
        *place, picks = row
        x, y = self.batches.batch(*(part.flatten(0, 1) for part in place))
        x = x.contiguous()
        seed = torch.arange(self.seeds, device=picks.device)[:, None]
        x_q, y_q = self.x_q[seed, picks].flatten(0, 1), self.y_q[seed, picks].flatten()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.logits(self.weights, x)
        with self.statistics.trigger_batch():
            frozen = {name: w.detach() for name, w in self.weights.items()}
            # the mean over all seeds' triggers has the signs of each seed's own mean
            x_q = ascend(lambda x: self.logits(frozen, x), x_q, y_q, steps=self.ascents, step_size=self.step_size,
                         eps=self.ascents * self.step_size)
            logits_q = self.logits(self.weights, x_q)
        # S times the mean over all seeds is the sum of the seeds' means
        (self.seeds * (F.cross_entropy(logits, y) + self.weight * F.cross_entropy(logits_q, y_q))).backward()
        self.optimizer.step()


def measure_stacked(contenders, seeds: int, rounds: int) -> list[dict]:
    """A row for fp32 and one for bf16: milliseconds of one seed's ordinary step and of a stacked step of all seeds.

    `gain` is how many times as fast the stacked step is as `seeds` ordinary ones; `image_passes` counts its work.
    """
    settings, rows = contenders.settings, []
    for amp in (False, True):
        one, *_ = contenders.our_step("margin", amp)
        stacked = StackedSeeds(
            [contenders.model().train() for _ in range(seeds)], contenders.batches,
            (contenders.x_q.expand(seeds, -1, -1, -1, -1), contenders.y_q.expand(seeds, -1)), weight=WEIGHT,
            steps=settings.steps, step_size=PIXEL, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp, graph=settings.graph)
        plan = contenders.rows(contenders.objective("margin", contenders.model(), amp))
        row = [torch.stack(parts) for parts in zip(*(next(plan) for _ in range(seeds)))]
        calls = {"one": one, "stacked": lambda step=stacked, row=row: step(row)}
        times = time_by_turns(calls, rounds, contenders.device, SECONDS)
        rows.append({
            "seeds": seeds, "precision": "amp" if amp else "fp32",
            "one_seed_ms_per_step": 1e3 * statistics.median(times["one"]),
            "stacked_ms_per_step": 1e3 * statistics.median(times["stacked"]),
            "gain": seeds * median_ratio(times["one"], times["stacked"]),
            "image_passes": seeds * image_passes("margin", "ours", settings),
        })
    return rows


def format_stacked(rows) -> str:
    """The rows of `measure_stacked` as text."""
    return "\n".join(
        f"{r['precision']:<5}one seed {r['one_seed_ms_per_step']:.2f} ms a step, {r['seeds']} stacked "
        f"{r['stacked_ms_per_step']:.2f} ms: {r['gain']:.2f} times as fast as one after the other" for r in rows)
