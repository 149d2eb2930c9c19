"""Ask a program for the label of one image.

`subprocess.run` with a time limit is all that this takes: no library is needed to start one program at a time.
"""

import shlex
import subprocess

from utils.ownership.answers import class_number
from utils.system.refusals import Refusal

ANSWER_SECONDS = 60  # time limit of one answer


def ask_program(command: str, png, classes: list[str], allow_missing: bool) -> int:
    """The number of the class that `command` prints for the image file `png`; {png} in it stands for the path.

    No shell is involved. Raises Refusal where the command cannot be run, fails, takes too long or prints no class;
    with `allow_missing` a failure or a timeout gives -1.
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
        last_lines = done.stderr[-200:].decode(errors="replace").split("\n")[-2:]
        raise Refusal(f"--command ended with status {done.returncode} for {png.name}: {' '.join(last_lines)!r}")
    return class_number(done.stdout[:200].decode(errors="replace"), classes, f"--command, {png.name}")
