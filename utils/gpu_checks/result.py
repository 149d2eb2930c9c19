"""What a check found, and how a list of findings reads."""

from typing import NamedTuple


class Check(NamedTuple):
    """A finding: what was checked, whether it holds (None: it was not run), and what was seen, in a few words."""

    what: str
    holds: bool | None
    seen: str


def attempt(what: str, check) -> Check:
    """The result of `check()`, or a failure that names the error that it raised: the other checks go on."""
    try:
        return check()
    except Exception as error:  # whatever a GPU, its driver or its memory cannot do
        return Check(what, False, describe_error(error))


def attempt_all(what: str, checks) -> list[Check]:
    """The list `checks()`, or one failure as in `attempt`."""
    try:
        return list(checks())
    except Exception as error:
        return [Check(what, False, describe_error(error))]


def describe_error(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def format_checks(checks) -> str:
    """One line for each check: ok, FAILED or not run."""
    words = {True: "ok", False: "FAILED", None: "not run"}
    return "\n".join(f"{words[check.holds]:<8}{check.what}: {check.seen}" for check in checks)
