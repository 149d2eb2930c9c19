"""What a check found, and how a list of findings reads."""

from typing import NamedTuple


class Check(NamedTuple):
    """A finding: what was checked, whether it holds (None: it was not run), and what was seen, in a few words."""

    what: str
    holds: bool | None
    seen: str


def format_checks(checks) -> str:
    """One line for each check: ok, FAILED or not run."""
    words = {True: "ok", False: "FAILED", None: "not run"}
    return "\n".join(f"{words[check.holds]:<8}{check.what}: {check.seen}" for check in checks)
