"""Extract a surrogate from a watermarked source: `python extraction.py -at soft -dmt res34 -tmt res34 -nq 100`."""

from utils import attacks
from utils.args import extraction_args
from utils.refuse import plainly
from utils.steal import remove, steal, sweep


@plainly
def main():
    args = extraction_args()
    if args.attack in ("prune", "quantize"):
        sweep(args)
    elif args.attack in ("finetune", "fineprune"):
        remove(args)
    else:
        loss, needs_labels = attacks.extraction_loss(args.attack, args.alpha)
        steps = args.steps if args.attack == "margin" else 0
        ball = {"steps": steps, "step_size": args.step_size / 255, "eps": args.eps / 255}
        copy = lambda model, source: attacks.Copy(source, loss, needs_labels, **ball)
        steal(args, args.attack, "extraction", copy, needs_labels)


if __name__ == "__main__":
    main()
