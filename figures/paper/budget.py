"""A budget of time: `25m` in seconds, and how much of it is left.

figures.make imports this module before anything that takes long, so that `STARTED` is the start of its process.
"""

import argparse
import re
import time
from dataclasses import dataclass

STARTED = time.monotonic()

# kept for saving the run that is stopped and for writing the tables and pictures: a step of the slowest run and its
# checkpoint take seconds, and so do the pictures
RESERVE_SECONDS, RESERVE_SHARE = 20, 0.1
LONGEST = 1000 * 3600  # seconds


def budget_seconds(text: str) -> float:
    """An argparse type: 90s, 25m, 1h30m, 1.5h or plain seconds as seconds."""
    number = r"([0-9]+(?:\.[0-9]+)?)"
    plain = re.fullmatch(number, text)
    parts = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text)
    if plain:
        seconds = float(text)
    elif text and parts:
        hours, minutes, rest = (float(part or 0) for part in parts.groups())
        seconds = 3600 * hours + 60 * minutes + rest
    else:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; pass for example 90s, 25m, 1h30m or 1.5h")
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1000h; pass for example 90s, 25m or 1.5h")
    return seconds


def show_seconds(seconds: float) -> str:
    """Seconds as text in the unit that a person would use, for example 12 s, 25 min or 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Budget:
    """`seconds` of time since `began`, a value of `time.monotonic`; a reserve of it is kept, see above."""

    seconds: float
    began: float

    @property
    def reserve(self) -> float:
        """The seconds that no run gets."""
        return min(RESERVE_SECONDS, RESERVE_SHARE * self.seconds)

    def left(self) -> float:
        """The seconds that runs may still take; negative afterwards."""
        return self.began + self.seconds - self.reserve - time.monotonic()
