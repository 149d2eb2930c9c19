"""Where a training stands, in memory and in the checkpoints of its run."""

from utils.system.refusals import Refusal

KEEP_EVERY = 20  # epochs between checkpoints that stay


class Progress:
    """The position of a training, read from the run's latest checkpoint, and the checkpoints that it writes.

    epoch, first_step  where the training continues, both counted from 0; `first_step` is a step of that epoch
    seconds            time that was spent in that epoch before
    best               {checkpoint: its accuracy} of the checkpoints that are replaced by better ones
    """

    def __init__(self, run, model, objective, step, snapshot, epochs: int):
        self.run, self.model, self.objective, self.step = run, model, objective, step
        self.snapshot, self.epochs = snapshot, epochs
        statistics = objective.statistics
        self.clean_twin = statistics if statistics is not None and statistics.clean else None
        self.epoch, self.first_step, self.seconds, self.best = 0, 0, 0.0, {}
        latest = run.load("latest")
        if latest is None:
            run.save("init", snapshot(model, -1, {}))
        else:
            self._restore(latest)

    def _restore(self, latest: dict) -> None:
        state = {"epoch": 0, "step": 0, "best": {}, "sums": {}, "seconds": 0.0, "optimizer": {}, "objective": {}}
        try:
            self.model.load_state_dict(latest["model"]["state_dict"])
            state |= latest["training"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise Refusal("checkpoint_latest.pt is not this run's last checkpoint: restore it, or pass --overwrite to "
                          "begin anew") from error
        if self.clean_twin:
            self.clean_twin.restore(state["clean"])
        self.step.restore(state["optimizer"])
        self.objective.restore(state["objective"])
        device = next(self.model.parameters()).device
        self.step.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.epoch, self.first_step, self.seconds, self.best = (
            state["epoch"], state["step"], state["seconds"], state["best"])
        if self.epoch < self.epochs:
            self.run.log(f"continuing in epoch {self.epoch + 1} of {self.epochs}, step {self.first_step + 1}")

    def enter_epoch(self) -> tuple[int, float]:
        """(first step, seconds already spent) of the epoch that begins; later epochs begin at (0, 0.0)."""
        position = self.first_step, self.seconds
        self.first_step, self.seconds = 0, 0.0
        return position

    def save_epoch(self, epoch: int, row: dict) -> None:
        """Write the checkpoints that are due after an epoch whose figures are `row`."""
        for name, figure in (("nat_best", "val_accuracy"), ("query_best", "trigger_accuracy")):
            if not self.objective.eligible(epoch) or figure not in row:
                continue
            if row[figure] >= self.best.get(name, -1.0):  # of equal epochs the last counts, as in the official code
                self.best[name] = row[figure]
                self._save(name, epoch, row)
        if (epoch + 1) % KEEP_EVERY == 0:
            self._save(str(epoch + 1), epoch, row)
        self._save_latest(epoch, row, {"epoch": epoch + 1, "step": 0, "sums": {}, "seconds": 0.0})

    def save_within_epoch(self, epoch: int, steps_done: int, sums: dict, seconds: float) -> None:
        """Write a checkpoint from which the epoch can be continued; `sums` are those of the step, on the CPU."""
        self._save_latest(epoch, {}, {"epoch": epoch, "step": steps_done, "sums": sums, "seconds": seconds})

    def _save_latest(self, epoch: int, row: dict, position: dict) -> None:
        memory = {"optimizer": self.step.state(), "objective": self.objective.state()}
        clean = self.clean_twin.state() if self.clean_twin else {}
        self._save("latest", epoch, row, training=position | memory | {"best": self.best, "clean": clean})

    def _save(self, name: str, epoch: int, row: dict, **training) -> None:
        # the clean twin first, so that a kill in between leaves no finished `latest` without it
        if self.clean_twin and not (name == "latest" and epoch + 1 < self.epochs):
            with self.clean_twin.cleaned():
                self.run.save(f"{name}_clean", self.snapshot(self.model, epoch, row))
        self.run.save(name, self.snapshot(self.model, epoch, row) | training)
