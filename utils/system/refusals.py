"""Bad input ends in one clear sentence and exit status 2, never in a traceback; so do flags and their values."""

import argparse
import contextlib
import errno
import functools
import math
import os
import signal
import sys

ULIMIT = "see ulimit"
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
    Characters that the terminal cannot show, as in names that are no Unicode, are written out as in \\xe9.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        on_all_ranks = False  # whether every process that torchrun started ends in the same way
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        # a notebook hands on a backend that may not be installed here; every picture is drawn into a file
        os.environ["MPLBACKEND"] = "agg"
        try:
            try:
                result = main(*args, **kwargs)
            except SystemExit:  # --help
                _flush(sys.stdout)
                raise
            _flush(sys.stdout)
            for call in exit_hooks:
                call(0)
            return result
        except Refusal as refusal:
            text, status, on_all_ranks = str(refusal), 2, True
        except Interrupted as stop:
            text, status, on_all_ranks = str(stop), 128 + stop.signum, True
        except KeyboardInterrupt:
            text, status = "interrupted; what was saved is intact, and the same command goes on", 128 + signal.SIGINT
        except BrokenPipeError:
            text, status = ("the program that read the output has ended; what was saved is intact, and the same "
                            "command goes on"), 128 + signal.SIGPIPE
        except OSError as error:
            text, status = _describe_os_error(error), 2
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                text = "out of memory: lower --batch-size or --width, or pass --amp; with another -msg, or --overwrite"
                status = 2
            elif "can't start new thread" in str(error):
                text, status = f"a limit of this account or system keeps more threads from starting ({ULIMIT} -u)", 2
            elif exit_hooks and "gloo/transport" in str(error):
                text, status = "the connection to another process of this run is lost; the same command goes on", 1
            else:
                raise
        if not on_all_ranks or not int(os.environ.get("RANK", 0)):  # else rank 0 alone says it
            name = sys.argv[0].rsplit("/", 1)[-1]
            with contextlib.suppress(OSError):  # nobody may read this either
                print(f"{name}: {'error: ' if status == 2 else ''}{printable(' '.join(text.split()))}",
                      file=sys.stderr, flush=True)
        for stream in (sys.stdout, sys.stderr):
            _drop_if_broken(stream)
        for call in exit_hooks:
            call(status)
        sys.exit(status)

    return wrapped


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory is missing, on the GPU or here."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def _flush(stream) -> None:
    """Write out what is held back; a reader that has gone shows here at the latest."""
    if stream is not None:
        stream.flush()


def _drop_if_broken(stream) -> None:
    """Let what a stream still holds go nowhere if it cannot be written, or the interpreter's end says so once more."""
    try:
        _flush(stream)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _describe_os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    again = "and run the same command again; the last checkpoint is intact"
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}: free some space {again}"
    if error.errno == errno.EDQUOT:
        return f"this account's share of the disk is used up{where}: free some space {again}"
    if error.errno == errno.EFBIG:
        return f"a limit keeps files from growing so large{where}: raise it ({ULIMIT} -f) {again}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open{where}: raise the limit ({ULIMIT} -n) {again}"
    if error.errno == errno.ENOMEM:
        return f"out of memory{where}: raise the limit ({ULIMIT} -v), lower --batch-size, or free some memory {again}"
    if error.errno == errno.EAGAIN:
        return f"too many processes or threads{where}: raise the limit ({ULIMIT} -u) {again}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read{where}: choose another --dir or --data-dir"
    return f"{error.strerror or error}{where}: check --dir and --data-dir, then run the same command again"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are raised as Refusal."""

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
