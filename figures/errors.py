"""`python -m figures.errors`: how often T1 claims models that were not stolen, and how often those that were.

On scikit-learn's digits, small models, one core, about ten minutes. One margin source and its trigger set; benign
models of two architectures, trained on two disjoint halves of the training images, a third of them for one epoch
only, so that they answer the triggers wrongly often; surrogates extracted from the source. Writes errors.json (with
every answer), errors.md and errors.png beside this file; `--redraw` computes everything again from its answers.
"""

import json
from pathlib import Path

from figures.false_claims.t1_models import collect_benign, collect_stolen
from figures.false_claims.t1_rates import false_claims, power
from figures.false_claims.t1_report import draw_errors, errors_markdown
from utils.system.refusals import Parser, refuse_in_one_sentence

HERE = Path(__file__).resolve().parent


@refuse_in_one_sentence
def main(argv=None):
    """Collect the answers or read them, and write the three files."""
    parser = Parser(prog="python -m figures.errors", description=__doc__.splitlines()[0])
    parser.add_argument("--redraw", action="store_true", help="use the answers in errors.json")
    if parser.parse_args(argv).redraw:
        figures = json.loads((HERE / "errors.json").read_text())
    else:
        figures = collect_stolen() | collect_benign()
    figures |= {"false_claims": false_claims(figures), "power": power(figures)}
    (HERE / "errors.json").write_text(json.dumps(figures) + "\n")
    (HERE / "errors.md").write_text(errors_markdown(figures))
    draw_errors(figures, HERE / "errors.png")
    print(errors_markdown(figures))


if __name__ == "__main__":
    main()
