"""TODO (figures.plan)"""

from figures.paper.commands import RunCommands, RunStep
from figures.paper.figure_cells import figure_panels
from figures.paper.numbers import MODELS
from figures.paper.table_cells import TABLES, mixup_source, table_cells


def steps_of_target(name: str, runs: RunCommands) -> list[RunStep]:
    """All steps of a target, each after those it needs."""
    found = []

    def visit(step):
        for before in step.needs:
            visit(before)
        if step not in found:
            found.append(step)

    for seed in runs.profile.seeds:
        for step in _wanted_steps(name, runs):
            visit(step(seed))
    return found


def _wanted_steps(name, runs):
    if name == "figure2":
        return []
    if name == "figure5":
        return [lambda seed: mixup_source(runs, seed, 2)]
    if name == "figure7":
        return [lambda seed, m=m: runs.analysis(runs.named(runs.source(seed))[m], "tsne") for m in MODELS]
    if name in TABLES:
        return [step for step, _ in table_cells(name, runs).values()]
    return [step for cell in figure_panels(name, runs).values() for step, _ in cell.values()]
