"""A run and its attacks as one HTML page: `python -m utils.report RUN [-o report.html]`.

RUN is the folder of a run of train.py; the attacks are those of distill.py and extraction.py below it. The page holds
the results, training curves, the models' answers to the triggers, p-values, commitment and settings. It has no script
and needs no network. Triggers, seeds and commands are in it only with --show-triggers.
"""

import argparse
from pathlib import Path

from utils.pages.page import check_page_file, write_page
from utils.run_page.records import read_family
from utils.run_page.whole import run_page
from utils.runs.architecture import add_named_architectures
from utils.system.flags import Parser
from utils.system.refusals import refuse_in_one_sentence


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m utils.report", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="folder of a run of train.py")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="the page (default: RUN/report.html)")
    add_named_architectures(parser)
    parser.add_argument("--show-triggers", action="store_true",
                        help="put the secret triggers, seeds and commands into the page, which is then private")
    flags = parser.parse_args(argv)
    check_page_file(flags.out, "--out")
    family = read_family(flags.run)
    text, missing = run_page(family, flags.show_triggers)
    path = flags.out or family.source.folder / "report.html"
    write_page(path, text, private=flags.show_triggers)
    for sentence in missing:
        print(f"not in the page: {sentence}")
    secret = "; it shows the triggers, keep it private" if flags.show_triggers else ""
    print(f"wrote {path}, {len(text.encode()) / 1e3:.0f} kB{secret}")


if __name__ == "__main__":
    main()
