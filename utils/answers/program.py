"""Ask a program for the labels of images.

`subprocess.run` with a time limit is all that this takes: no library is needed to start one program at a time.
"""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from utils.answers.answers import Answer, class_number
from utils.system.refusals import Refusal

IMAGES_PER_CALL = 100  # of a command with {pngs}
LINE = 200  # characters that are read of each answer
LONGEST_CALL = 2e6  # seconds; subprocess counts the milliseconds of its time limit in 32 bits


class Program(NamedTuple):
    """A command line; {png} in it stands for the path of one image, the argument {pngs} for the paths of many.

    seconds  time limit of a call, for each image that it is about
    """

    command: str
    seconds: float = 60.0

    @property
    def images_per_call(self) -> int:
        """How many images a call may be about."""
        return IMAGES_PER_CALL if "{pngs}" in self.command else 1

    def check(self) -> None:
        """Refuse a command line that can never be run: without a place for the images, or of no program."""
        parts = self._parts()
        if shutil.which(parts[0]) is None:
            raise Refusal(f"--command cannot be run: there is no program {parts[0][:80]!r} that may be started")

    def ask(self, pngs: list[Path], classes: list[str], allow_missing: bool) -> list[Answer]:
        """The answers to image files: the lines that one call prints, in order, or what it prints about one image.

        No shell is involved. Raises Refusal where the command cannot be run, fails, takes too long or prints no
        classes; with `allow_missing` a failure or a timeout gives answers without a label.
        """
        named = pngs[0].name if len(pngs) == 1 else f"{len(pngs)} images"
        seconds, nothing = min(self.seconds * len(pngs), LONGEST_CALL), [Answer()] * len(pngs)
        try:
            done = subprocess.run(self._filled(pngs), stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            if allow_missing:
                return nothing
            raise Refusal(f"--command gave no answer for {named} in {seconds:g} s; --timeout allows more") from error
        except (OSError, ValueError) as error:
            raise Refusal(f"--command cannot be run: {error}") from error
        if done.returncode:
            if allow_missing:
                return nothing
            last_lines = done.stderr[-200:].decode(errors="replace").split("\n")[-2:]
            raise Refusal(f"--command ended with status {done.returncode} for {named}: {' '.join(last_lines)!r}")
        lines = [done.stdout[:LINE].decode(errors="replace")]
        if self.images_per_call > 1:
            lines = done.stdout[: (LINE + 1) * len(pngs)].decode(errors="replace").splitlines()
            if len(lines) != len(pngs):
                raise Refusal(f"--command printed {len(lines)} lines for {len(pngs)} images: {{pngs}} needs one for "
                              "each, in their order")
        return [Answer(class_number(line, classes, f"--command, {png.name}")) for line, png in zip(lines, pngs)]

    def _parts(self) -> list[str]:
        """The arguments, with exactly one kind of placeholder."""
        try:
            parts = shlex.split(self.command)
        except ValueError as error:
            raise Refusal(f"--command cannot be read as a shell would read it ({error})") from error
        many, one = self.command.count("{pngs}"), any("{png}" in part for part in parts)
        if not (parts.count("{pngs}") == many == 1 and not one) if many else not one:
            raise Refusal("--command needs {png} where the image's path belongs, or {pngs}, an argument of its own, "
                          "once, for the paths of many images; not both")
        return parts

    def _filled(self, pngs) -> list[str]:
        parts = self._parts()
        if "{pngs}" in parts:
            i = parts.index("{pngs}")
            return parts[:i] + [str(png) for png in pngs] + parts[i + 1 :]
        return [part.replace("{png}", str(pngs[0])) for part in parts]
