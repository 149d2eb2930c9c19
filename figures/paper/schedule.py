"""Starts the runs of a plan within a budget of time."""

import contextlib
import signal
import sys
from dataclasses import dataclass, field

from figures.paper.budget import Budget, show_seconds
from figures.paper.commands import RunStep
from figures.paper.estimates import EVALUATION, Estimates, measure_estimates
from figures.paper.plan import Waiting, next_run
from figures.paper.start import STOPS, run
from utils.system.refusals import Interrupted, Refusal

MEASURING = 1 / 3  # of the time for runs: the most that measuring the estimates may take


@dataclass
class PlannedRuns:
    """The steps of a plan, see `ordered_steps`, and what came of them.

    stopped   the step that was running when the time was up, if any
    failed    the steps whose command failed
    left      the seconds that were left when no other run fitted, None where none was left to start
    """

    steps: list
    stopped: RunStep | None = None
    failed: list = field(default_factory=list)
    left: float | None = None

    def start_all(self, budget: Budget, after_each) -> None:
        """Start what fits the budget, or continue it; `after_each` is called after every command.

        A command that fails is told and counted in `failed`; what needs it is passed over. Raises Interrupted, or
        SystemExit where the running script has said it, when a signal asks this process to end.
        """
        with _stop_on_signals():
            estimates = measure_estimates([s for s in self.steps if not s.finished], max(MEASURING * budget.left(), 0))
            self._print_plan(estimates, budget)
            whole = budget.left()
            while one := next_run(self._waiting(estimates), budget.left(), whole):
                try:
                    complete = run(one.step, budget.left)
                except Refusal as refusal:
                    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: error: {refusal}", file=sys.stderr, flush=True)
                    self.failed.append(one.step)
                else:
                    self.stopped = None if complete else one.step
                after_each()
            if self._waiting(estimates):
                self.left = max(budget.left(), 0)

    def _waiting(self, estimates: Estimates) -> list[Waiting]:
        """The steps that can be started now."""
        return [Waiting(step, estimates.remaining(step), step.begun) for step in self.steps
                if not step.complete and step not in self.failed and all(before.finished for before in step.needs)]

    def _print_plan(self, estimates: Estimates, budget: Budget) -> None:
        """A line for each run: number, what it takes, command."""
        for note in estimates.notes:
            print(note)
        print(f"budget {show_seconds(budget.seconds)}: {show_seconds(max(budget.left(), 0))} left for runs, "
              f"{show_seconds(budget.reserve)} kept for saving and the tables; estimates: ten measured steps, "
              f"{100 * EVALUATION:.0f} % for evaluations, {show_seconds(estimates.start_up)} for each start")
        for number, step in enumerate(self.steps, 1):
            print(f"{number:>3}  {_state(step, estimates):<20}  {step.command}", flush=True)

    def summary(self) -> str:
        """One line: how many runs are finished, what was stopped or failed, and that the same command goes on."""
        finished = sum(step.complete for step in self.steps)
        text = f"{finished} of {len(self.steps)} runs are finished"
        if self.stopped is not None:
            text += f"; stopped at the end of the budget: {self.stopped.command_now}"
            if not self.stopped.begun:
                text += " (it begins anew)"
        elif self.left is not None:
            room = f"no other fits in the {show_seconds(self.left)} that are left"
            text += f"; {room if self.left else 'the time is up'}"
        if finished < len(self.steps):
            text += "; the same command goes on"
        return text

    def failures(self) -> str:
        """One sentence on the failed commands; only where there are any."""
        count = "1 command" if len(self.failed) == 1 else f"{len(self.failed)} commands"
        return f"{count} failed, see above; mend that, and the same figures.make goes on: " + "; ".join(
            step.command_now for step in self.failed)


def _state(step: RunStep, estimates: Estimates) -> str:
    if step.complete:
        return "finished"
    seconds = estimates.remaining(step)
    length = "unknown" if seconds is None else f"about {show_seconds(seconds)}"
    if step.report_due:
        return f"report, {length}"
    return f"begun, {length}" if step.begun else length


@contextlib.contextmanager
def _stop_on_signals():
    """Context in which a signal raises Interrupted, so that the tables can still be written."""
    def stop(signum, frame):
        raise Interrupted(signum, "interrupted; what was saved is intact, and the same command goes on")

    old = {s: signal.signal(s, stop) for s in STOPS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
