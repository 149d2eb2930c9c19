"""The runs that a table or figure needs, in an order in which they can be started.

Needs the standard library alone, because Snakemake reads it in an environment of its own.
"""

from figures.paper.commands import RunCommands, RunStep
from figures.paper.figure_cells import figure_panels
from figures.paper.table_cells import TABLES, mixup_source, table_cells
from utils.published.numbers import MODELS


def steps_of_target(name: str, runs: RunCommands) -> list[RunStep]:
    """All steps of a table or figure for all seeds of the profile, each after the steps it needs or reports."""
    steps = []

    def visit(step):
        for before in (*step.needs, *step.reports):
            visit(before)
        if step not in steps:
            steps.append(step)

    for seed in runs.profile.seeds:
        for step in _wanted_steps(name, runs):
            visit(step(seed))
    return steps


def _wanted_steps(name, runs):
    """Functions of a seed that give the steps whose results are shown."""
    if name == "figure2":
        return []
    if name == "figure5":
        return [lambda seed: mixup_source(runs, seed, 2)]
    if name == "figure7":
        return [lambda seed, m=m: runs.analysis(runs.named(runs.source(seed))[m], "tsne") for m in MODELS]
    if name in TABLES:
        return [step for step, _ in table_cells(name, runs).values()]
    return [step for cell in figure_panels(name, runs).values() for step, _ in cell.values()]
