"""What a step and an epoch cost, ours against a literal rendering of the official code: `python -m utils.benchmark`.

All contenders are timed in one process, by turns, so that a ratio holds on a busy machine too: each round times every
contender once, a figure is the median of the rounds, a ratio the median of the rounds' own ratios. The images are
noise; no figure depends on them.
"""

import json
from pathlib import Path

from utils.cost.contenders import Contenders
from utils.cost.measure import measure_components, measure_rivals, measure_steps
from utils.cost.settings import parse_benchmark
from utils.cost.table import describe_machine, format_cost_table
from utils.system.device import choose_device, prepare_torch
from utils.system.files import check_output_file
from utils.system.refusals import refuse_in_one_sentence


@refuse_in_one_sentence
def main(argv=None):
    settings = parse_benchmark(argv, __doc__)
    check_output_file(settings.json, "--json")
    device = choose_device(settings.device)
    settings = settings.on(device)
    prepare_torch(0, deterministic=False, tf32=settings.tf32)
    contenders, result = Contenders(settings, device), describe_machine(settings, device)
    if settings.rivals:
        result["rivals"] = measure_rivals(contenders, settings.rounds)
    else:
        rows, ratios = measure_steps(contenders, settings.objectives, settings.rounds)
        parts = measure_components(contenders, settings.rounds) if settings.components else []
        print(format_cost_table(rows, ratios, parts))
        result |= {"rows": rows, "ratios": ratios, "components": parts}
    if settings.json:
        Path(settings.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
