"""A run that is kept nowhere, for models that train in seconds."""


class InMemoryRun:
    """A run folder for `training.loop.fit` that keeps nothing."""

    load = save = write_rows = log = lambda *_: None
    rows = list
