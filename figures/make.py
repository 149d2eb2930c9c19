"""The paper's tables and figures: `python -m figures.make table2|figure4|...|all [--profile paper|small|smoke]`.

Starts the runs that are missing, with the three scripts (a finished run is used as it is, an interrupted one is
continued), then writes <name>.md, .json and, for figures, .png into OUT/<profile>, and report.html, one page of all
that is there. A cell without its run says "not run". Profiles:

paper  the paper's settings, three seeds
small  res18 of width 16 on a folder of images, three seeds
smoke  digits, one seed, in minutes

With --budget TIME the most instructive runs come first (`figures.paper.plan`), what does not fit is left for the next
time, and what is running at the end is stopped after its checkpoint; the tables are written in any case. --archive FILE
packs the results of all runs into one small file.

The package `figures.paper` knows the runs, starts them and writes the files; this file is its door.
"""

import tempfile
import time
from pathlib import Path

from figures.paper.archive import check_archive, write_archive
from figures.paper.budget import STARTED, Budget, budget_seconds
from figures.paper.commands import RunCommands
from figures.paper.figure_files import write_target
from figures.paper.plan import ordered_steps
from figures.paper.profiles import PROFILES
from figures.paper.results_page import write_results_page
from figures.paper.schedule import PlannedRuns
from figures.paper.start import run
from figures.paper.steps import steps_of_target
from figures.paper.table_cells import FIGURES, TABLES
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence


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
def main(argv=None, began: float | None = None):
    """Start the runs that the named targets need, one after the other, and write the targets' files.

    `began` is the value of `time.monotonic` from which a budget counts, now by default.
    """
    began = time.monotonic() if began is None else began
    args = parse_flags(argv)
    runs = RunCommands(args.profile, Path(args.dir or f"experiments/{args.profile}"))
    out = Path(args.out) / args.profile
    names = [*TABLES, *FIGURES] if "all" in args.names else args.names
    if args.budget:
        steps = ordered_steps(names, runs)
    else:
        steps = list(dict.fromkeys(step for name in names for step in steps_of_target(name, runs)))
    if args.list:
        print("\n".join(step.command for step in steps if not step.complete))
        return
    check_folder("--out", out)
    if args.archive:
        check_archive(Path(args.archive))
        check_folder("--archive", Path(args.archive).absolute().parent)

    def write(targets):
        for name in targets:
            write_target(name, runs, out)

    def finish():
        write(names)
        write_results_page(out, args.profile)
        print(f"wrote {', '.join(names)} to {out}")
        if args.archive:
            print(write_archive(Path(args.archive), out, runs.dir, args.weights))

    if args.no_run or all(step.complete for step in steps):
        finish()
        if args.budget:
            print(PlannedRuns(steps).summary())
        return
    check_folder("--dir", runs.dir)
    check_data(args.profile)
    if args.budget:
        start_within(Budget(args.budget, began), steps, lambda: write([n for n in names if n in TABLES]), finish)
        return
    for step in steps:
        run(step)
    finish()


def parse_flags(argv=None):
    """The flags of figures.make; Refusal where they do not go together."""
    parser = Parser(prog="python -m figures.make", description=__doc__.splitlines()[0], allow_abbrev=False)
    names = ("all", *TABLES, *FIGURES)
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help="all, table1 ... 9, figure1 ... 8")
    parser.add_argument("--profile", default="smoke", choices=tuple(PROFILES))
    parser.add_argument("-d", "--dir", help="folder of the runs (default: experiments/<profile>)")
    parser.add_argument("--out", default=str(Path(__file__).parent), help="results go to OUT/<profile>")
    parser.add_argument("--list", action="store_true", help="print the commands still to be run, one a line, and end")
    parser.add_argument("--no-run", action="store_true", help="write from the finished runs; the rest is not run")
    parser.add_argument("--budget", type=budget_seconds, metavar="TIME",
                        help="end after 90s, 25m, 1h30m or 1.5h: start what fits, the most instructive runs first, "
                        "stop what is running then, write the tables; the same command goes on")
    parser.add_argument("--archive", metavar="FILE",
                        help="pack tables, settings, metrics and summaries of all runs into FILE, a .tar.gz of at most "
                        "15 MB")
    parser.add_argument("--weights", action="store_true", help="with --archive: checkpoints too, without that limit")
    args = parser.parse_args(argv)
    if args.weights and not args.archive:
        raise Refusal("--weights: it adds the checkpoints to an archive; pass --archive FILE too, or leave it out")
    if args.list and args.archive:
        raise Refusal("--archive with --list: nothing is written with --list; leave one of them out")
    if args.no_run and args.budget:
        raise Refusal("--budget with --no-run: nothing is started with --no-run; leave one of them out")
    return args


def start_within(budget: Budget, steps: list, write_tables, finish) -> None:
    """Start what fits the budget and call `finish`, in any case; `write_tables` is called before and after each run.

    Raises Refusal where a command failed, Interrupted or SystemExit after a signal.
    """
    planned = PlannedRuns(steps)
    write_tables()
    try:
        planned.start_all(budget, write_tables)
    finally:
        finish()
        print(planned.summary())
    if planned.failed:
        raise Refusal(planned.failures())


if __name__ == "__main__":
    main(began=STARTED)
