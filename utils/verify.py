"""Judge a suspect by its answers alone: `python -m utils.verify export RUN --to DIR`, then `... claim RUN ...`.

For comparison, without triggers: `... di RUN --suspect RUN2` asks whether a suspect knows RUN's training images,
`... eef RUN --benign RUN3 --suspect RUN2` whether its gradients show RUN's secret style; `... certify RUN` is about a
model's weights under noise, see utils/smoothing.py.

Exit status: 0 the claim holds (or the other command is done), 1 it does not hold, 2 an error.
"""

import argparse
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from utils import answers as asked
from utils import commit, data, eef, guard, inference, smoothing
from utils.answers import Answers
from utils.args import Parser
from utils.checkpoint import find, load, read_benign, read_model, read_trigger, unpack
from utils.files import check_output, digest, read_json, write, write_json
from utils.refuse import Refusal, plainly
from utils.verdict import Case
from utils.wording import draw, sentence, text


@plainly
def main(argv=None) -> int:
    args = _arguments(argv)
    return args.call(args)


def _arguments(argv):
    p = Parser(prog="python -m utils.verify", description=__doc__, allow_abbrev=False,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = p.add_subparsers(dest="what", required=True)
    e = parts.add_parser("export", help="write the triggers as neutral PNG files, and a private key file")
    e.add_argument("run", metavar="RUN", help="folder of train.py, or a checkpoint that holds triggers")
    e.add_argument("--to", required=True, metavar="DIR", help="a new folder; the suspect sees DIR/images only")
    e.set_defaults(call=export)
    c = parts.add_parser("claim", help="judge a suspect's answers to the exported triggers")
    c.set_defaults(call=claim)
    c.add_argument("run", metavar="RUN", help="as for export")
    kinds = c.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--predictions", metavar="FILE", help=".csv (name,label or name,probabilities) or .npy")
    kinds.add_argument("--suspect", metavar="RUN", help="a checkpoint file or a run folder")
    kinds.add_argument("--command", metavar="'CMD {png}'", help="a program that prints the label of one image")
    c.add_argument("--sequential", action="store_true", help="--command: stop asking when Wald's test has decided")
    c.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="the bank: models that know no watermark")
    c.add_argument("--alpha", type=_alpha, default=1e-3, help="largest probability of a false claim (default: 0.001)")
    c.add_argument("--allow-missing", action="store_true", help="count triggers without an answer as misses")
    c.add_argument("--commitment", type=_sha256, metavar="SHA256", help="the digest as it was published")
    c.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    c.add_argument("--plot", type=Path, metavar="FILE.png", help="p-value against the number of queries")
    inference.arguments(parts)
    eef.arguments(parts)
    smoothing.arguments(parts)
    args = p.parse_args(argv)
    if args.what == "claim" and args.sequential and not args.command:
        raise Refusal("--sequential stops asking early: it needs --command")
    return args


def _alpha(text):
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")


def _sha256(text):
    if not re.fullmatch("[0-9a-f]{64}", text.strip().lower()):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no SHA-256 in hexadecimal")
    return text.strip().lower()


def owner(run):
    """What the owner holds: (folder, trigger, class names). A bare checkpoint has no folder to hold a commitment."""
    path = find(run)
    checkpoint = load(path)
    model, trigger = unpack(checkpoint, path)
    folder = Path(run) if Path(run).is_dir() else path.parent / "no commitment beside a bare checkpoint"
    about, count = checkpoint.get("about"), len(model[1].linear.bias)
    classes = about.get("classes") if isinstance(about, dict) else None
    classes = [str(i) for i in range(count)] if classes is None else classes
    if not (isinstance(classes, list) and len(set(map(str, classes))) == count == len(classes)):
        raise Refusal(f"{path}: its class names do not fit its {count} classes")
    if (folder / "triggers.pt").exists():
        trigger = read_trigger(folder / "triggers.pt", count)
    if trigger is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    return folder, trigger, [str(name) for name in classes]


# ---- export -------------------------------------------------------------------------------------------------


def export(args) -> int:
    """Write DIR/images/<neutral name>.png and DIR/key.json."""
    folder, trigger, classes = owner(args.run)
    to = Path(args.to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise Refusal(f"--to {to} is there and not empty: name a new folder")
    names, there = commit.names(trigger, folder), to.exists()
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _export(folder, trigger, classes, names, to)
    except BaseException:  # half of a secret is left nowhere, and the same command can be given again
        shutil.rmtree(to / "images", ignore_errors=True)
        if not there:
            shutil.rmtree(to, ignore_errors=True)
        raise
    print(f"{len(names)} triggers in {to / 'images'}, to be shown to the suspect in any order")
    print(f"their labels in {to / 'key.json'}, to be shown to nobody")
    return 0


def _export(folder, trigger, classes, names, to: Path) -> None:
    (to / "images").mkdir()
    pictures(trigger, names, to / "images")
    images = {
        names[i]: {"label": int(trigger.labels[i]), "label_name": classes[int(trigger.labels[i])],
                   "true_labels": trigger.true_labels[i].tolist(), "index": i}
        for i in np.argsort(names).tolist()
    }
    known = (read_json(folder / commit.PUBLIC) or {}).get("sha256")
    write_json(to / "key.json", {"commitment": known, "classes": classes, "images": images}, private=True)


def pictures(trigger, names, folder: Path) -> None:
    """Write the triggers as PNG files, in the names' order, and read each back bit-equal."""
    from PIL import Image

    for i in np.argsort(names).tolist():
        buffer = io.BytesIO()
        Image.fromarray(trigger.images[i].permute(1, 2, 0).numpy()).save(buffer, format="png")
        write(folder / names[i], buffer.getvalue())
        if (data.decode(guard.content(folder / names[i])) != trigger.images[i].numpy()).any():
            raise Refusal(f"{folder / names[i]} does not read back as it was written: check the disk")


# ---- claim --------------------------------------------------------------------------------------------------


def claim(args) -> int:
    """Print the case and its decision; 0 where the claim holds, else 1."""
    check_output(args.json, "--json")
    check_output(args.plot, "--plot")
    folder, trigger, classes = owner(args.run)
    names = commit.names(trigger, folder)
    commitment = commit.examine(folder, trigger, args.commitment)
    suspect = find(args.suspect, None) if args.suspect else None
    bank = [_benign(run, trigger, classes, suspect) for run in args.benign]
    case = Case(trigger, len(classes), commitment, bank, args.alpha)

    order = np.argsort(names).tolist()  # of the names, which is random in the triggers
    if args.command:
        answers, order = _question(args, case, trigger, names, classes, order)
    elif suspect:
        answers = asked.from_model(read_model(suspect), suspect, trigger, len(classes))
    else:
        answers = asked.from_file(args.predictions, names, classes, args.allow_missing)

    report = case.report(answers)
    report["sequential"], report["curve"] = case.sequence(answers, order), case.curve(answers)
    if args.sequential:
        _rest_on_sequence(report, len(order))
    report["sentence"] = sentence(report)
    print(text(report))
    if args.json:
        write_json(args.json, report, private=True)
    if args.plot and report["curve"] is None:
        print(f"no plot {args.plot}: there is no p-value to draw, for no test of a fixed number of queries applies")
    elif args.plot:
        write(args.plot, draw(report))
    return 0 if report["decision"]["holds"] else 1


def _benign(run, trigger, classes, suspect) -> Answers:
    path = find(run, None)
    if suspect and digest(path) == digest(suspect):
        raise Refusal(f"--benign {run} is the suspect itself")
    return asked.from_model(read_benign(run), path, trigger, len(classes))


def _question(args, case, trigger, names, classes, order):
    """Ask the program, image by image in `order`; with --sequential no longer than the test needs."""
    labels, done = np.full(len(names), -1, dtype=np.int64), []
    with tempfile.TemporaryDirectory() as folder:
        pictures(trigger, names, Path(folder))
        for i in order:
            labels[i] = asked.ask(args.command, Path(folder) / names[i], classes, args.allow_missing)
            done.append(i)
            if args.sequential and case.sequence(Answers(labels, None), done)["decision"] != "undecided":
                break
    if (labels < 0).all():
        raise Refusal(f"--command {args.command} answered none of the {len(done)} triggers that it was asked")
    answers = Answers(labels, None)
    return (answers if args.sequential else asked.complete("--command", answers, names, args.allow_missing)), done


def _rest_on_sequence(report: dict, queries: int) -> None:
    """The number of queries was decided by the answers, so the fixed-size tests no longer apply."""
    why = "the answers decided when to stop asking; only the sequential test allows for that"
    report["tests"] = {name: {"log10_p": None, "why_not": test["why_not"] or why}
                       for name, test in report["tests"].items()}
    report["curve"] = None
    # a decision without a p-value is a refusal, which stopping early does not lift
    if "log10_p" in report["decision"] and report["sequential"]["decision"] != "does not apply":
        report["decision"] = {"holds": report["sequential"]["decision"] == "claim", "rests_on": "SPRT",
                              "why": f"Wald's test, which may stop at any time, ended after {queries} queries"}


if __name__ == "__main__":
    sys.exit(main())
