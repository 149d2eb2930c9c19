"""Bad input ends in one clear sentence and exit status 2, never in a traceback."""

import argparse
import errno
import functools
import os
import signal
import sys

at_end = []  # functions of the exit status, called when a script's main has ended


class Refusal(Exception):
    """A request that cannot be served; its text names the flag or file and the way out."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence."""

    def error(self, message):
        raise Refusal(f"{message} (see {self.prog} --help)")


class Interrupted(Exception):
    """A signal asked the run to end; the state is saved. `signum` gives the exit status (128 + signum)."""

    def __init__(self, signum: int, text: str):
        super().__init__(text)
        self.signum = signum


def plainly(main):
    """Wrap a script's main: refusals and the machine's own limits become one sentence on stderr."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        alike = False  # does every process that torchrun started end like this?
        try:
            result = main(*args, **kwargs)
            for call in at_end:
                call(0)
            return result
        except Refusal as refusal:
            text, status, alike = str(refusal), 2, True
        except Interrupted as stop:
            text, status, alike = str(stop), 128 + stop.signum, True
        except KeyboardInterrupt:
            text, status = "interrupted; what was saved is intact, and the same command goes on", 128 + signal.SIGINT
        except OSError as error:
            text, status = _machine(error), 2
        except (RuntimeError, MemoryError) as error:
            known = any(words in str(error).lower() for words in ("out of memory", "can't allocate memory"))
            if known or isinstance(error, MemoryError):
                text = "out of memory: lower --batch-size or --width, or pass --amp; with another -msg, or --overwrite"
                status = 2
            elif at_end and "gloo/transport" in str(error):
                text, status = "the connection to another process of this run is lost; the same command goes on", 1
            else:
                raise
        if not alike or not int(os.environ.get("RANK", 0)):  # else torchrun's rank 0 says it
            name = sys.argv[0].rsplit("/", 1)[-1]
            print(f"{name}: {'error: ' if status == 2 else ''}{' '.join(text.split())}", file=sys.stderr)
        for call in at_end:
            call(status)
        sys.exit(status)

    return wrapped


def _machine(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"the disk is full{where}: free some space and run the same command again; the last checkpoint is intact"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read{where}: choose another --dir or --data-dir"
    return f"{error.strerror or error}{where}: check --dir and --data-dir, then run the same command again"
