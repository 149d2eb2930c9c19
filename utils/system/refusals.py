"""Bad input ends in one clear sentence and exit status 2, never in a traceback; so do flags and their values."""

import argparse
import errno
import functools
import math
import os
import signal
import sys
from dataclasses import fields

exit_hooks = []  # functions of the exit status, called at the end of a script


class Refusal(Exception):
    """A request that cannot be served; its text names the flag or file and the way out."""


class Interrupted(Exception):
    """A signal asked the run to end; the state is saved. `signum` gives the exit status (128 + signum)."""

    def __init__(self, signum: int, text: str):
        super().__init__(text)
        self.signum = signum


def printable(text: str) -> str:
    """The text with whatever could steer a terminal, as escape codes do, written out as in \\x1b; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def refuse_in_one_sentence(main):
    """Wrap a script's main: refusals, full disks, missing memory and the like become one sentence on stderr.

    The sentence may quote what somebody else wrote, as a server or a model, so only printable characters are shown.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        on_all_ranks = False  # whether every process that torchrun started ends in the same way
        try:
            result = main(*args, **kwargs)
            for call in exit_hooks:
                call(0)
            return result
        except Refusal as refusal:
            text, status, on_all_ranks = str(refusal), 2, True
        except Interrupted as stop:
            text, status, on_all_ranks = str(stop), 128 + stop.signum, True
        except KeyboardInterrupt:
            text, status = "interrupted; what was saved is intact, and the same command goes on", 128 + signal.SIGINT
        except OSError as error:
            text, status = _describe_os_error(error), 2
        except (RuntimeError, MemoryError) as error:
            known = any(words in str(error).lower() for words in ("out of memory", "can't allocate memory"))
            if known or isinstance(error, MemoryError):
                text = "out of memory: lower --batch-size or --width, or pass --amp; with another -msg, or --overwrite"
                status = 2
            elif exit_hooks and "gloo/transport" in str(error):
                text, status = "the connection to another process of this run is lost; the same command goes on", 1
            else:
                raise
        if not on_all_ranks or not int(os.environ.get("RANK", 0)):  # else rank 0 alone says it
            name = sys.argv[0].rsplit("/", 1)[-1]
            print(f"{name}: {'error: ' if status == 2 else ''}{printable(' '.join(text.split()))}",
                  file=sys.stderr)
        for call in exit_hooks:
            call(status)
        sys.exit(status)

    return wrapped


def _describe_os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"the disk is full{where}: free some space and run the same command again; the last checkpoint is intact"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read{where}: choose another --dir or --data-dir"
    return f"{error.strerror or error}{where}: check --dir and --data-dir, then run the same command again"


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
