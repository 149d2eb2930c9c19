"""The command line's parser and the types of its values."""

import argparse
import math
from dataclasses import fields

from utils.system.refusals import Refusal


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are raised as Refusal."""

    def error(self, message):
        raise Refusal(f"{message} (see {self.prog} --help)")


def settings_from(kind, flags):
    """An instance of the dataclass `kind` whose fields are the parsed flags of the same names."""
    return kind(**{field.name: getattr(flags, field.name) for field in fields(kind)})


def number(kind, low, high=math.inf, open_low=False):
    """An argparse type: a number of `kind` (int or float) in [low, high], or in (low, high] with `open_low`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        if not (low < value if open_low else low <= value) or not value <= high or not math.isfinite(value):
            bound = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    return parse


def folder_tag(text):
    """An argparse type: text that can be a part of a folder's name."""
    if "/" in text or "\0" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError("must not contain '/': it becomes part of a folder's name")
    return text


# larger rates would overflow float32
COUNT, POSITIVE, SHARE = number(int, 1), number(float, 0, 1e38, open_low=True), number(float, 0, 1)
SEED, RADIUS = number(int, 0, 2**31 - 1), number(float, 0, 1e6)
CONFIDENCE = number(float, 0, 1 - 1e-9, open_low=True)
