"""The paper's tables and figures: `python -m figures.make table2|figure4|...|all [--profile paper|small|smoke]`.

Starts the runs that are missing, with the three scripts (a finished run is used as it is, an interrupted one is
continued), then writes <name>.md, .json and, for figures, .png into OUT/<profile>. A cell without its run says "not
run". Profiles:

paper  the paper's settings, three seeds
small  res18 of width 16 on a folder of images, three seeds
smoke  digits, one seed, in minutes

The runs come in the order of the names, so name first what teaches most. SIGTERM lets the running script save, and the
same command goes on: `timeout --signal=TERM 25m python -m figures.make ...` ends in time. --archive FILE packs the
results of all runs into one small file.
"""

from pathlib import Path

from figures.cells import FIGURES, TABLES, steps_of_target
from figures.runs import PROFILES, REGIMES, RunCommands, run_steps
from figures.shared import HERE, check_folder
from figures.write import write_archive, write_target
from utils.system.files import check_output_file
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence


@refuse_in_one_sentence
def main(argv=None):
    """Start the runs that the named targets need, one after the other, and write the targets' files."""
    args = parse_flags(argv)
    runs = RunCommands(args.profile, Path(args.dir or f"experiments/{args.profile}"))
    out = Path(args.out) / args.profile
    names = [*TABLES, *FIGURES] if "all" in args.names else args.names
    steps = dict.fromkeys(step for name in names for step in steps_of_target(name, runs))
    due = [step for step in steps if step.due]
    if args.list:
        print("\n".join(step.command for step in due))
        return
    check_folder("--out", out)
    if args.archive:
        check_output_file(args.archive, "--archive")
        check_folder("--archive", Path(args.archive).absolute().parent)
    if due and not args.no_run:
        check_folder("--dir", runs.dir)
        check_data(args.profile)
        run_steps(due)
    for name in names:
        write_target(name, runs, out)
    print(f"wrote {', '.join(names)} to {out}")
    if args.archive:
        print(write_archive(Path(args.archive), out, runs.dir, args.weights))


def parse_flags(argv=None):
    """The flags of figures.make; Refusal where they do not go together."""
    parser = Parser(prog="python -m figures.make", description=__doc__.splitlines()[0], allow_abbrev=False)
    names = ("all", *TABLES, *FIGURES)
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help="all, table1 ... 9, figure1 ... 8")
    parser.add_argument("--profile", default="smoke", choices=tuple(PROFILES))
    parser.add_argument("-d", "--dir", help="folder of the runs (default: experiments/<profile>)")
    parser.add_argument("--out", default=HERE, help="results go to OUT/<profile>")
    parser.add_argument("--list", action="store_true", help="print the commands still to be run, one a line, and end")
    parser.add_argument("--no-run", action="store_true", help="write from the finished runs; the rest is not run")
    parser.add_argument("--archive", metavar="FILE",
                        help="pack tables, settings, metrics and summaries of all runs into FILE, a .tar.gz of at most "
                        "15 MB")
    parser.add_argument("--weights", action="store_true", help="with --archive: checkpoints too, without that limit")
    args = parser.parse_args(argv)
    if args.weights and not args.archive:
        raise Refusal("--weights: it adds the checkpoints to an archive; pass --archive FILE too, or leave it out")
    if args.list and args.archive:
        raise Refusal("--archive with --list: nothing is written with --list; leave one of them out")
    return args


def check_data(name: str) -> None:
    """Refuse the profile `name` where its folder of images does not exist."""
    folder = (PROFILES | REGIMES)[name].data_dir
    if folder and not Path(folder).is_dir():
        raise Refusal(f"--profile {name}: there is no folder {folder} here; put images there (train/<class>/ and "
                      "test/<class>/) or a link to them, or pass --profile smoke, which needs none")


if __name__ == "__main__":
    main()
