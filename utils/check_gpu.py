"""Does the GPU path work on this machine, and how fast is it? `python -m utils.check_gpu`, or `make gpu`.

In at most five minutes: recorded steps against ordinary ones, steps that wait for the GPU, whole commands on digits in
every precision, and the time of a step for each architecture beside the official rendering. Ends with status 1 where
a check failed or something fell back to a slower way; the findings go to figures/gpu/<device>.json.
"""

import argparse
import re
import shlex
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from utils.cost.contenders import Contenders
from utils.gpu_checks.rates import format_rates, measure_rates, settings_of
from utils.gpu_checks.result import Check, attempt, attempt_all, format_checks
from utils.gpu_checks.scripts import check_scripts, check_two_processes
from utils.gpu_checks.steps import OBJECTIVES, check_waiting, compare_recorded
from utils.system.device import ROOT, describe_process, prepare_torch
from utils.system.files import check_output_file, write_json
from utils.system.flags import Parser, number
from utils.system.refusals import Refusal, refuse_in_one_sentence

PAIRS = (("res34", "margin"), ("res34", "soft"), ("res18", "margin"), ("vgg11", "margin"))
COMMANDS = 0.75  # of the limit: when commands that still run have failed
STEP_WIDTH = 16  # of the network on which single steps are checked


@refuse_in_one_sentence
def main(argv=None):
    """Check and time this machine's GPU, and write what was found; SystemExit(1) where a check failed."""
    args = parse_flags(argv)
    began = time.monotonic()
    left = lambda: args.limit - (time.monotonic() - began)
    if not torch.cuda.is_available():
        raise Refusal("make gpu, or utils.check_gpu: this machine or this PyTorch has no CUDA GPU; "
                      "run it where `python -c 'import torch; print(torch.cuda.is_available())'` prints True")
    device = torch.device("cuda")
    path = Path(args.json or default_path(torch.cuda.get_device_name(device)))
    path.parent.mkdir(parents=True, exist_ok=True)
    about = describe_process(device) | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    about["command"] = shlex.join(["python", "-m", "utils.check_gpu", *(sys.argv[1:] if argv is None else argv)])
    print(f"{about['device_name']}, torch {about['torch']}, CUDA {about['cuda']}, Python {about['python']}", flush=True)
    end = began + COMMANDS * args.limit
    with ThreadPoolExecutor(1) as beside:  # the commands are processes of their own; this thread only waits for them
        commands = beside.submit(check_commands, end)
        checks = attempt_all("single steps", lambda: check_steps(device))
        checks += commands.result()
    rows = measure_rates([pair for pair in PAIRS if pair[0] in args.models], device, left, show=show_row)
    checks.append(check_rows(rows))
    seconds = time.monotonic() - began
    write_json(path, about | {"seconds": round(seconds, 1), "checks": [check._asdict() for check in checks],
                              "rows": rows})
    print(f"\n{format_rates(rows)}\n\n{format_checks(checks)}\n\n{seconds:.0f} s; written to {path}")
    if any(check.holds is False for check in checks):
        sys.exit(1)


def parse_flags(argv=None):
    """The flags of utils.check_gpu."""
    parser = Parser(prog="python -m utils.check_gpu", description=__doc__.splitlines()[0],
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    models = tuple(dict.fromkeys(model for model, _ in PAIRS))
    parser.add_argument("--models", nargs="+", default=models, choices=models, help="architectures to time")
    parser.add_argument("--limit", type=number(float, 120), default=290.0, metavar="SECONDS",
                        help="timings that would not fit are left out; the commands have three quarters of it")
    parser.add_argument("--json", metavar="FILE", help="findings go there (default: figures/gpu/<device>.json)")
    args = parser.parse_args(argv)
    check_output_file(args.json, "--json")
    return args


def default_path(name: str) -> Path:
    """figures/gpu/<device>.json for the name of a device."""
    return ROOT / "figures" / "gpu" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def check_steps(device, contenders=None) -> list[Check]:
    """Recorded steps against ordinary ones where kernels are deterministic; then whether a step waits."""
    contenders, checks = contenders or Contenders(replace(settings_of("res18"), width=STEP_WIDTH), device), []

    def tell(check, *args):
        found = attempt(f"{check.__name__}{args}", lambda: check(contenders, *args))
        print(format_checks([found]), flush=True)
        checks.append(found)

    prepare_torch(0, deterministic=True, tf32=False)
    for name in OBJECTIVES:
        tell(compare_recorded, name, False)
    for name in ("margin, paper", "margin, shared", "soft"):
        tell(compare_recorded, name, True)
    torch.use_deterministic_algorithms(False)
    prepare_torch(0, deterministic=False, tf32=True)
    for name in OBJECTIVES:
        for graph in (False, True):
            tell(check_waiting, name, True, graph)
    return checks


def check_commands(end: float, device: str = "cuda") -> list[Check]:
    """The three scripts on digits, in a folder that is removed afterwards; they have time until `end`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        checks = attempt_all("commands on digits", lambda: check_scripts(folder, end, device))
        return checks + attempt_all("two processes", lambda: [check_two_processes(folder, end, device=device)])


def check_rows(rows) -> Check:
    """Whether every rendering could be timed, as far as time allowed, and was recorded where it should be."""
    told = [f"{row['model']} {row['objective']} {row['rendering']}: {row[why]}" for row in rows
            for why in ("failed", "fell_back") if why in row]
    what = "no timed step failed or fell back to ordinary steps"
    if told:
        return Check(what, False, told[0])
    timed = [row for row in rows if "ms_per_step" in row]
    recorded = any("recorded" in row["rendering"] for row in timed)
    return Check(what, True if recorded else None, f"{len(timed)} of {len(rows)} rows timed")


def show_row(row: dict) -> None:
    """Print a row as soon as it is measured."""
    found = row.get("missing") or row.get("failed") or f"{row['ms_per_step']:.2f} ms a step"
    print(f"{row['model']} {row['objective']} {row['rendering']}: {found}", flush=True)


if __name__ == "__main__":
    main()
