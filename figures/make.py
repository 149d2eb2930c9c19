"""The paper's tables and figures: `python -m figures.make table2|figure4|...|all [--profile paper|small|smoke]`.

Starts the runs that are missing, by the project's commands (a finished run is used as it is, an interrupted one is
continued), then writes <name>.md, .json and, for figures, .png into OUT/<profile>. A cell without its run says "not
run". Profiles:

paper  the paper's settings, three seeds
small  res18 of width 16 on a folder of images, three seeds
smoke  digits, one seed, in minutes

The runs come in the order of the names, so name first what teaches most. SIGTERM lets the running script save, and the
same command goes on: `timeout --signal=TERM 25m python -m figures.make ...` ends in time. --archive FILE packs the
results of all runs into one small file.
"""

import gzip
import io
import tarfile
from pathlib import Path

from figures.cells import FIGURES, TABLES, steps_of_target
from figures.runs import PROFILES, ROOT, Profile, run_steps
from figures.shared import HERE, check_folder, figure_parser
from figures.write import write_target
from utils.system.files import check_output_file, write_atomically
from utils.system.refusals import Refusal, refuse_in_one_sentence


@refuse_in_one_sentence
def main(argv=None):
    parser = figure_parser("make", __doc__)
    names = ("all", *TABLES, *FIGURES)
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help="all, table1 ... 9, figure1 ... 8")
    parser.add_argument("--profile", default="smoke", choices=tuple(PROFILES))
    parser.add_argument("-d", "--dir", help="folder of the runs (default: experiments/<profile>)")
    parser.add_argument("--out", default=HERE, help="results go to OUT/<profile>")
    parser.add_argument("--list", action="store_true", help="print the commands still to be run, one a line, and end")
    parser.add_argument("--no-run", action="store_true", help="write from the finished runs; the rest is not run")
    parser.add_argument("--archive", metavar="FILE",
                        help="pack tables, settings, metrics and summaries of all runs into FILE, a .tar.gz")
    args = parser.parse_args(argv)
    if args.list and args.archive:
        raise Refusal("--archive with --list: nothing is written with --list; leave one of them out")
    profile, out = PROFILES[args.profile], Path(args.out) / args.profile
    folder = Path(args.dir or f"experiments/{args.profile}")
    names = [*TABLES, *FIGURES] if "all" in args.names else args.names
    steps = dict.fromkeys(step for name in names for step in steps_of_target(name, profile, folder))
    due = [step for step in steps if step.result() is None]
    if args.list:
        print("\n".join(step.command for step in due))
        return
    check_folder("--out", out)
    if args.archive:
        check_output_file(args.archive, "--archive")
        check_folder("--archive", Path(args.archive).absolute().parent)
    if due and not args.no_run:
        check_folder("--dir", folder)
        check_data(args.profile, profile)
        run_steps(due)
    for name in names:
        write_target(name, profile, folder, out)
    print(f"wrote {', '.join(names)} to {out}")
    if args.archive:
        print(write_archive(Path(args.archive), out, folder))


def check_data(name: str, profile: Profile) -> None:
    """Refuse a profile where its folder of images does not exist."""
    folder = profile.data_dir
    if folder and not Path(folder).is_dir():
        raise Refusal(f"--profile {name}: there is no folder {folder} here; put images there (train/<class>/ and "
                      "test/<class>/) or a link to them, or pass --profile smoke, which needs none")


# ---- all results as one small file ----

# What is named here is packed, and nothing else: a run folder also holds the triggers and the key of their commitment.
RESULTS = [f"{name}.json" for name in ("run", "summary", "energy", "margin", "tsne", "di", "eef")] + ["metrics.jsonl"]


def write_archive(path: Path, tables: Path, runs: Path) -> str:
    """Pack the files in the folder `tables` and of the runs below the folder `runs` as .tar.gz; returns what it says.

    Archives of the same results are equal byte by byte: members are sorted, without times and owners. Links are not
    followed, and JSON names this project's files by relative paths.
    """
    # Figure 5 is the picture of a source's triggers
    members = {f"tables/{name}.{end}": tables / f"{name}.{end}" for name in (*TABLES, *FIGURES)
               for end in ("md", "json", "png") if (name, end) != ("figure5", "png")}
    folders = [found.parent for found in runs.rglob("run.json")]
    members |= {Path("runs", folder.relative_to(runs), name).as_posix(): folder / name
                for folder in folders for name in RESULTS}
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, member in sorted(members.items()):
            if member.is_file() and not member.is_symlink():
                content = member.read_bytes()
                if name.endswith(".json"):
                    content = content.replace(f'"{ROOT}/'.encode(), b'"')
                about = tarfile.TarInfo(name)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
    write_atomically(path, packed.getvalue())
    return f"packed the tables and {len(folders)} run(s) into {path}, {packed.tell() / 1e3:.0f} kB"


if __name__ == "__main__":
    main()
