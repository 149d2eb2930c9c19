"""Distil a surrogate from a watermarked source: `python distill.py -dt cifar10 -dmt res18 -tmt res34 -nq 100`."""

from functools import partial

from utils import attacks
from utils.args import distill_args
from utils.refuse import plainly
from utils.steal import steal


@plainly
def main():
    args = distill_args()
    loss = partial(attacks.distill, alpha=args.alpha, temperature=args.temp)
    steal(args, "distill", "distillation", lambda model, source: attacks.Copy(source, loss, True), needs_labels=True)


if __name__ == "__main__":
    main()
