"""What the entry scripts share, in packages; which may import which, pyproject.toml says and `make lint` checks.

From code of your own, with this repository first on PYTHONPATH (`utils`, `models` and `figures` are its names): a
watermark in your own loop, and the tests of any network's logits. `net` takes pixels x (B, 3, S, S) in [0, 1] and
normalises them itself; `loader` gives (x, y) without the held-out images.

    from functools import partial
    import torch
    from utils.data.sets import load_data
    from utils.ownership.results import TriggerTests
    from utils.watermark.margin import WatermarkObjective, ascend
    from utils.watermark.triggers import draw_triggers

    data = load_data("digits")
    triggers = draw_triggers(data.held_out, m=25, k=1, classes=10, seed=0)  # random wrong labels
    x_q, y_q = triggers.on("cpu")
    ascent = partial(ascend, steps=5, step_size=1 / 255, eps=5 / 255)
    objective = WatermarkObjective(
        net, x_q, y_q, weight=0.1, reduction="sum", batch=25, bn_stats="paper", ascent=ascent)
    for x, y in loader:
        loss, _ = objective(net.train(), x, y, picks=torch.randint(len(y_q), (25,)))
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    tests = TriggerTests(triggers, classes=10, uniform=True)
    print(tests.figures(net.eval()(x_q).detach()))  # hits, and log10 p of T1 and T1p
"""

import os
import sys
import time


def wait_quietly_beside_others() -> None:
    """Let OpenMP's threads sleep instead of spin while they wait, if other programs keep a core busy right now.

    A thread that spins on a core that it shares holds up the one it waits for (docs/cost.md). It changes no result.
    OpenMP reads the variable once, when torch is imported; a user's own setting stands.
    """
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    try:
        threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        busy = min(_running() for _ in range(5)) - 1  # besides this process
    except (AttributeError, OSError, ValueError, IndexError):  # no Linux
        return
    if threads > 1 and busy + threads > (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _running() -> int:
    """How many threads of all programs run or are ready to; many are so for a moment, hence the pause."""
    time.sleep(0.01)
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].split("/")[0])


def say_interrupted(kind, error, traceback) -> None:
    """Ctrl-C while packages are imported, before `refuse_in_one_sentence` begins, shows no traceback either."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    print("interrupted", file=sys.stderr)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = say_interrupted
wait_quietly_beside_others()
