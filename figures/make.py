"""The paper's tables and figures: `python -m figures.make table2|figure4|...|all [--profile paper|small|smoke]`.

Starts the runs that are missing, with the three scripts (a finished run is used as it is, an interrupted one is
continued), then writes <name>.md, .json and, for figures, .png into OUT/<profile>. A cell without its run says
"not run". Profiles:

paper  the paper's settings, three seeds
small  res18 of width 16 on a folder of images, three seeds
smoke  digits, one seed, in minutes

The package `figures.paper` knows the runs and writes the files; this file starts the runs.
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
    """Run a step unless it is finished; a step that was interrupted continues where it was.

    Whether it succeeded is decided by the file at its end, not by its exit status, because utils.verify exits with 1
    where a claim does not hold. Raises Refusal where that file is missing.

    A signal that stops this process is passed on as SIGTERM; the script then saves, says so and exits. Where it was
    stopped before it could say so, Interrupted is raised.
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

    # In its own session the script does not also get a terminal's Ctrl-C; a second signal would end it unsaved.
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
    """Refuse a folder that cannot be created or written to, before hours of runs. Creates nothing."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise Refusal(f"{flag} {folder}: {existing} takes no files ({error.strerror}); name another folder") from error


def check_data(name: str) -> None:
    """Refuse the profile `name` where its folder of images does not exist."""
    folder = PROFILES[name].data_dir
    if folder and not Path(folder).is_dir():
        raise Refusal(f"--profile {name}: there is no folder {folder} here; put images there (train/<class>/ and "
                      "test/<class>/) or a link to them, or pass --profile smoke, which needs none")


@refuse_in_one_sentence
def main(argv=None):
    """Start the runs that the named targets need, one after the other, and write the targets' files."""
    parser = Parser(prog="python -m figures.make", description=__doc__.splitlines()[0], allow_abbrev=False)
    names = ("all", *TABLES, *FIGURES)
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help="all, table1 ... 9, figure1 ... 8")
    parser.add_argument("--profile", default="smoke", choices=tuple(PROFILES))
    parser.add_argument("-d", "--dir", help="folder of the runs (default: experiments/<profile>)")
    parser.add_argument("--out", default=str(Path(__file__).parent), help="results go to OUT/<profile>")
    parser.add_argument("--list", action="store_true", help="print the commands still to be run, one a line, and end")
    parser.add_argument("--no-run", action="store_true", help="write from the finished runs; the rest is not run")
    args = parser.parse_args(argv)
    runs = RunCommands(args.profile, Path(args.dir or f"experiments/{args.profile}"))
    out = Path(args.out) / args.profile
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
