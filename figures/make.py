"""The paper's tables and figures: `python -m figures.make table2|figure4|...|all [--profile paper|small|smoke]`.

Runs what is missing through the three scripts (a finished run is taken as it is, a broken one goes on), then writes
<name>.md, .json and, for figures, .png into OUT/<profile>. A cell without its run says "not run".
paper: the paper's settings, three seeds. small: res18 of width 16 on an image folder, three seeds. smoke: digits, one
seed, in minutes.

`figures.runs` has the profiles and runs, `figures.plan` what each target needs, `figures.draw` writes what was found.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from figures.paper.commands import RunCommands, RunStep
from figures.paper.figure_files import write_target
from figures.paper.profiles import PROFILES
from figures.paper.steps import steps_of_target
from figures.paper.table_cells import FIGURES, TABLES
from utils.system.flags import Parser
from utils.system.refusals import Interrupted, Refusal, refuse_in_one_sentence

ROOT = Path(__file__).resolve().parent.parent


def run(step: RunStep) -> None:
    """Run a step unless it is finished; a step that was killed goes on where it was.

    The file at its end says whether it succeeded, not its status: utils.verify has 1 for a claim that does not hold.
    What stops us is handed on as SIGTERM, at which a script saves and says so (Interrupted where it could not say it).
    """
    if step.finished:
        return
    print(f"$ {step.command}", flush=True)
    words = [sys.executable, *shlex.split(step.command)[1:]]
    if words[1].endswith(".py"):
        words[1] = str(ROOT / words[1])
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    received = []

    def stop(signum, frame):
        received.append(signum)
        process.terminate()

    # in a session of its own a terminal's Ctrl-C does not reach it a second time, at which it would end unsaved
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment, start_new_session=True)
    stops = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    old = {s: signal.signal(s, stop) for s in stops}
    try:
        status = process.wait()
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
    if received and status > 0:
        sys.exit(128 + received[0])
    if received:
        raise Interrupted(received[0], "interrupted; what was saved is intact, and the same command goes on")
    if not step.finished:
        how = f"by signal {-status}" if status < 0 else f"with status {status}, without {step.done}"
        raise Refusal(f"this command ended {how}, see above; mend that, and the same figures.make goes on: "
                      f"{step.command}")


def check_folder(flag: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before hours of runs. Leaves nothing."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise Refusal(f"{flag} {folder}: {there} takes no files ({error.strerror}); name another folder") from error


def check_data(name: str) -> None:
    """Refuse a profile whose folder of images is not there."""
    folder = PROFILES[name].data_dir
    if folder and not Path(folder).is_dir():
        raise Refusal(f"--profile {name}: there is no folder {folder} here; put images there (train/<class>/ and "
                      "test/<class>/) or a link to them, or pass --profile smoke, which needs none")


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m figures.make", description=__doc__.splitlines()[0], allow_abbrev=False)
    names = ("all", *TABLES, *FIGURES)
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help="all, table1 ... 9, figure1 ... 8")
    parser.add_argument("--profile", default="smoke", choices=tuple(PROFILES))
    parser.add_argument("-d", "--dir", help="folder of the runs (default: experiments/<profile>)")
    parser.add_argument("--out", default=str(Path(__file__).parent), help="results go to OUT/<profile>")
    parser.add_argument("--list", action="store_true", help="print the commands still to be run, one a line, and end")
    parser.add_argument("--no-run", action="store_true", help="write from the finished runs; the rest is not run")
    args = parser.parse_args(argv)
    runs, out = RunCommands(args.profile, Path(args.dir or f"experiments/{args.profile}")), Path(args.out) / args.profile
    names = [*TABLES, *FIGURES] if "all" in args.names else args.names
    steps = list(dict.fromkeys(step for name in names for step in steps_of_target(name, runs)))
    if args.list:
        print("\n".join(step.command for step in steps if not step.finished))
        return
    check_folder("--out", out)
    if not args.no_run and not all(step.finished for step in steps):
        check_folder("--dir", runs.dir)
        check_data(args.profile)
        for step in steps:
            run(step)
    for name in names:
        write_target(name, runs, out)
    print(f"wrote {', '.join(names)} to {out}")


if __name__ == "__main__":
    main()
