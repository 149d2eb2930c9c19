"""In which order runs are started within a budget, and which of them comes next.

Needs the standard library alone, because Snakemake reads this package in an environment of its own.
"""

from typing import NamedTuple

from figures.paper.commands import RunCommands, RunStep
from figures.paper.steps import steps_of_target


def lessons(runs: RunCommands, seed) -> tuple:
    """The runs of a seed that teach the most, in the order in which they are started within a budget."""
    margin, erm = runs.source(seed), runs.source(seed, "base")
    return (
        margin,                         # is the watermark learnt, and at which accuracy?
        runs.named(margin)["soft"],     # the paper's main claim: does it survive theft?
        runs.clean_soft(margin),        # does that hold without triggers in BatchNorm's running statistics?
        erm,                            # the control: the same triggers without a margin ...
        runs.named(erm)["soft"],        # ... which are expected to be lost
        runs.source(seed, "none"),      # false alarms, and what the watermark costs in accuracy
        runs.named(margin)["hard"],     # the other two thefts
        runs.named(margin)["reg"],
    )


def ordered_steps(names, runs: RunCommands) -> list[RunStep]:
    """The steps of the targets `names`: `lessons` seed by seed, as far as a target needs them, then all others.

    Each comes after the steps it needs. A step's benign runs may come after it, see `RunStep.reports`.
    """
    wanted = list(dict.fromkeys(step for name in names for step in steps_of_target(name, runs)))
    first = [step for seed in runs.profile.seeds for step in lessons(runs, seed) if step in set(wanted)]
    ordered = {}  # its keys are the steps

    def visit(step):
        for before in step.needs:
            visit(before)
        ordered.setdefault(step)

    for step in (*first, *wanted):
        visit(step)
    return list(ordered)


class Waiting(NamedTuple):
    """A step that can be started: the seconds that it still takes (None: unknown), and whether it was begun before."""

    step: RunStep
    seconds: float | None
    begun: bool = False


def next_run(waiting: list[Waiting], left: float, whole: float) -> Waiting | None:
    """The first of `waiting` that may be started with `left` seconds to go, None where none may.

    A begun run is continued in any case. A new one must fit, or be longer than `whole`, the seconds that there were
    for runs at the beginning: such a run can only be done in pieces. Where nothing else fits, a run of unknown length
    is begun.
    """
    if left <= 0:
        return None
    for one in waiting:
        if one.begun or (one.seconds is not None and (one.seconds <= left or one.seconds > whole)):
            return one
    return next((one for one in waiting if one.seconds is None), None)
