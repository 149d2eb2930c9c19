"""Analyses of a finished run: `python -m utils.analyze WHAT RUN` writes RUN/WHAT.json.

energy  free energy of test images and triggers (Table 7), and what a filter at 5 % refused clean images would refuse
margin  upper bound of the margin of each trigger (Table 5): the smallest eps at which projected ascent flips it
recalibrated  accuracy and triggers with BatchNorm statistics estimated anew from training images
traces  of the triggers in a source's answers to natural images, and what a copy, RUN, has learnt of them
tsne    features of test images and triggers in two dimensions (Figure 7), perplexity 5 and 10, with RUN/tsne.png; and
        the share of triggers whose five nearest test images bear mostly the label that was assigned to the trigger
"""

import argparse
import json

from utils.analysis.energy import report_energy
from utils.analysis.finished_run import FinishedRun
from utils.analysis.margin_bound import report_margin
from utils.analysis.recalibration import report_recalibrated
from utils.analysis.traces import report_traces
from utils.analysis.tsne import draw_tsne, report_tsne
from utils.runs.architecture import add_named_architectures
from utils.system.files import write_atomically
from utils.system.machine import choose_device
from utils.system.refusals import Parser, refuse_in_one_sentence

REPORTS = {"energy": report_energy, "margin": report_margin, "recalibrated": report_recalibrated,
           "traces": report_traces, "tsne": report_tsne}


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m utils.analyze", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(REPORTS))
    parser.add_argument("run", help="folder of a finished run of train.py, distill.py or extraction.py")
    add_named_architectures(parser)
    parser.add_argument("--data-dir", default="data", help="folder of the source's data set")
    parser.add_argument("--select", choices=("val", "last"), help="which checkpoint (default: the run's own choice)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"))
    flags = parser.parse_args(argv)
    run = FinishedRun(flags.run, flags.data_dir, flags.select, choose_device(flags.device))
    result = {"what": flags.what, **REPORTS[flags.what](run)}
    write_atomically(run.folder / f"{flags.what}.json", (json.dumps(result, indent=1) + "\n").encode())
    if flags.what == "tsne":
        write_atomically(run.folder / "tsne.png", draw_tsne(result))
    print(json.dumps({k: v for k, v in result.items() if not isinstance(v, (list, dict))}))


if __name__ == "__main__":
    main()
