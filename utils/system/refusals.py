"""Bad input ends in one clear sentence and exit status 2, never in a traceback; so do flags and their values."""

import argparse
import contextlib
import errno
import functools
import math
import os
import signal
import sys

exit_hooks = []  # functions of the exit status, called at the end of a script
AGAIN = "and run the same command again (--overwrite begins anew); the last checkpoint is intact"
MACHINE_ERRORS = {  # what is wrong, what to do
    errno.ENOSPC: ("the disk is full", f"free some space {AGAIN}"),
    errno.EDQUOT: ("this account's share of the disk is used up", f"free some space {AGAIN}"),
    errno.EFBIG: ("a limit keeps files from growing so large", f"raise it (see ulimit -f) {AGAIN}"),
    errno.EMFILE: ("too many files are open", f"raise the limit (see ulimit -n) {AGAIN}"),
    errno.ENOMEM: ("out of memory", f"raise a limit (see ulimit -v), lower --batch-size, or free some memory {AGAIN}"),
    errno.EAGAIN: ("too many processes or threads", f"raise the limit (see ulimit -u) {AGAIN}"),
}
MACHINE_ERRORS[errno.ENFILE] = MACHINE_ERRORS[errno.EMFILE]
for _number in (errno.EACCES, errno.EPERM, errno.EROFS):
    MACHINE_ERRORS[_number] = "no permission to write or read", "change its permissions, or name another place"


class Refusal(Exception):
    """A request that cannot be served; its text names the flag or file and the way out."""


class Interrupted(Exception):
    """A signal asked the run to end; the state is saved. `signum` gives the exit status (128 + signum)."""

    def __init__(self, signum: int, text: str):
        super().__init__(text)
        self.signum = signum


def rank() -> int:
    """This process's number among those of torchrun; 0 where there is only one, whatever a scheduler calls it."""
    return int(os.environ.get("RANK", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def printable(text: str) -> str:
    """The text with whatever could steer a terminal, as escape codes do, written out as in \\x1b; line ends stay."""
    return "".join(c if c.isprintable() or c in "\n\u00a0" else c.encode("unicode_escape").decode() for c in text)


def refuse_in_one_sentence(main):
    """Wrap a script's main: refusals, full disks, missing memory and the like become one sentence on stderr.

    The sentence may quote what somebody else wrote, as a server or a model, so only printable characters are shown.
    Characters that the terminal cannot show, as in names that are no Unicode, are written out as in \\xe9.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        _open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        # a notebook hands on a backend that may not be installed here; every picture is drawn into a file
        os.environ["MPLBACKEND"] = "agg"
        try:
            try:
                result = main(*args, **kwargs)
            except SystemExit:  # --help
                print(end="", flush=True)
                raise
            print(end="", flush=True)  # a reader that has gone shows here at the latest
            for call in exit_hooks:
                call(0)
            return result
        except (Refusal, Interrupted, KeyboardInterrupt, OSError, RuntimeError, MemoryError) as error:
            text, status = _describe(error)
            is_on_all_ranks = isinstance(error, (Refusal, Interrupted))  # then rank 0 alone says it
        if not is_on_all_ranks or rank() == 0:
            name = sys.argv[0].rsplit("/", 1)[-1]
            with contextlib.suppress(OSError):  # nobody may read this either
                print(f"{name}: {'error: ' if status == 2 else ''}{printable(' '.join(text.split()))}",
                      file=sys.stderr, flush=True)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # else the interpreter's end says so once more
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        for call in exit_hooks:
            call(status)
        sys.exit(status)

    return wrapped


def _open_closed_streams() -> None:
    """Let what is printed go nowhere where the caller closed stdout or stderr, as `2>&-` and some schedulers do.

    Python has None in their place then, and the next file that is opened would take their number, and with it what
    libraries in C print.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python's or torch's says that the machine or the device has no memory left."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def _describe(error: BaseException) -> tuple[str, int]:
    """What a script says of an error, and its exit status; raises the error if it is a mistake of ours."""
    intact = "the same command goes on from what was saved (--overwrite begins anew)"
    text = str(error).lower()
    if isinstance(error, Refusal):
        return str(error), 2
    if isinstance(error, Interrupted):
        return str(error), 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {intact}", 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return f"the program that read the output has ended; {intact}", 128 + signal.SIGPIPE
    if isinstance(error, OSError):
        unknown = error.strerror or error, "check that place, then run the same command again (--overwrite begins anew)"
        what, way_out = MACHINE_ERRORS.get(error.errno, unknown)
        return f"{what}{f' ({error.filename})' if error.filename else ''}: {way_out}", 2
    if lacks_memory(error):
        return ("out of memory: close other programs; a training may take a lower --batch-size or --width, or --amp, "
                "with another -msg or --overwrite"), 2
    if "can't start new thread" in text:
        return "a limit of this account or system keeps more threads from starting (see ulimit -u)", 2
    if exit_hooks and "gloo/transport" in text:
        return f"the connection to another process of this run is lost; {intact}", 1
    raise error


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are raised as Refusal, and that takes no abbreviated flags and no values that
    are written on to one: `-deterministic` would be `-d eterministic`.
    """

    def __init__(self, *args, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=formatter_class, **kwargs)

    def _get_option_tuples(self, option_string):
        return []

    def error(self, message):
        raise Refusal(f"{message} (see {self.prog} --help)")


def number(kind, low, high=math.inf, open_low=False):
    """An argparse type: a number of `kind` (int or float) in [low, high], or in (low, high] with `open_low`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        if not (low < value if open_low else low <= value) or not value <= high or not math.isfinite(value):
            bound = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
            finite = "finite and " if kind is float and not math.isfinite(value) else ""
            raise argparse.ArgumentTypeError(f"{text} must be {finite}{bound}")
        return value

    return parse


def folder_tag(text):
    """An argparse type: text that can be a part of a folder's name, which may have 255 bytes."""
    if "/" in text or "\0" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError("must not contain '/': it becomes part of a folder's name")
    if len(os.fsencode(text)) > 150:
        raise argparse.ArgumentTypeError("is too long for a part of a folder's name: 150 bytes are the most")
    return text


# larger rates would overflow float32
COUNT, POSITIVE, SHARE = number(int, 1, 10**9), number(float, 0, 1e38, open_low=True), number(float, 0, 1)
SEED, RADIUS = number(int, 0, 2**31 - 1), number(float, 0, 1e6)
CONFIDENCE = number(float, 0, 1 - 1e-9, open_low=True)
