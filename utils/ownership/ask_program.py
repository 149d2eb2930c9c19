"""TODO (utils.answers)"""

import shlex
import subprocess

from utils.ownership.answers import class_number
from utils.system.refusals import Refusal

ANSWER_SECONDS = 60  # for one answer of a program


def ask_program(command: str, png, classes: list[str], allow_missing: bool) -> int:
    """Run `command` with {png} replaced by a file's path, without a shell, and read the label that it prints.

    -1 where it fails and `allow_missing` is set.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise Refusal(f"--command: {error}") from error
    if not any("{png}" in part for part in parts):
        raise Refusal("--command needs {png} where the image's path belongs")
    try:
        done = subprocess.run([part.replace("{png}", str(png)) for part in parts], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        if allow_missing:
            return -1
        raise Refusal(f"--command gave no answer for {png.name} in {ANSWER_SECONDS} s") from error
    except (OSError, ValueError) as error:
        raise Refusal(f"--command cannot be run: {error}") from error
    if done.returncode:
        if allow_missing:
            return -1
        said = done.stderr[-200:].decode(errors="replace").split("\n")[-2:]
        raise Refusal(f"--command ended with status {done.returncode} for {png.name}: {' '.join(said)!r}")
    return class_number(done.stdout[:200].decode(errors="replace"), classes, f"--command, {png.name}")
