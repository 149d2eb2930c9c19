"""What the experiments share: flags, a script in this process, a Markdown table, an interval, files of a result."""

import contextlib
import io
import json
import shlex
import sys
import tempfile
from pathlib import Path

from scipy import stats

from utils.system.files import write_atomically
from utils.system.refusals import Parser, Refusal, printable

HERE = Path(__file__).resolve().parent


def figure_parser(name: str, doc: str | None) -> Parser:
    """A parser of `figures.<name>`, whose docstring is `doc`; None under PYTHONOPTIMIZE=2."""
    return Parser(prog=f"python -m figures.{name}", description=(doc or "").partition("\n")[0])


def experiment_parser(name: str, doc: str | None, runs: str | None = None) -> Parser:
    """A parser of `figures.<name>` with --dir, the folder of its runs, and --out, that of its files."""
    parser = figure_parser(name, doc)
    parser.add_argument("-d", "--dir", type=Path, default=Path(runs or f"experiments/{name}"),
                        help="folder of the runs; finished ones are taken as they are")
    parser.add_argument("--out", type=Path, default=HERE, help=f"folder of {name}.json and {name}.md")
    return parser


def parse_with_folders(parser: Parser, argv):
    """The flags of an `experiment_parser`, of folders that can be written to."""
    args = parser.parse_args(argv)
    check_folder("--dir", args.dir)
    check_folder("--out", args.out)
    return args


def check_folder(flag: str, folder: Path) -> None:
    """Refuse a folder that cannot be created or written to, before hours of runs. Creates nothing."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise Refusal(f"{flag} {folder}: {existing} takes no files ({error.strerror}); name another folder") from error


def call(script, flags: str, quiet: bool = False) -> None:
    """Run an entry script in this process as if it were called with these flags; it prints nothing if `quiet`."""
    old, sys.argv = sys.argv, [f"{script.__name__}.py", *shlex.split(flags)]
    try:
        with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stdout):
            print(f"\n$ python {script.__name__}.py {flags}", flush=True)
            script.main()
    finally:
        sys.argv = old


def markdown_table(head, rows) -> str:
    """A table of cells that are shown by `str`."""
    lines = [f"| {' | '.join(printable(str(cell)) for cell in row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


def join_numbers(values) -> str:
    """Numbers to two digits, separated by commas; "-" for None."""
    return ", ".join("-" if v is None else f"{v:.2f}" for v in values)


def interval(k: int, n: int) -> tuple[float, float]:
    """Two-sided 95 % Clopper-Pearson interval of a rate, after k of n."""
    return tuple(map(float, stats.binomtest(k, n).proportion_ci()))


def write_result(path: Path, content, text: str, picture: bytes | None = None, indent: int | None = None) -> None:
    """Write `path`, which ends in .json or has no such end, and .md and .png beside it, each whole or not at all.

    Prints the text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = str(path).removesuffix(".json")
    write_atomically(Path(f"{name}.json"), (json.dumps(content, indent=indent) + "\n").encode())
    write_atomically(Path(f"{name}.md"), text.encode())
    if picture:
        write_atomically(Path(f"{name}.png"), picture)
    print(text)
