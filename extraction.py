"""Extract a surrogate from a watermarked source: `python extraction.py -at soft -dmt res34 -tmt res34 -nq 100`."""

from utils import attacks
from utils.args import extraction_args
from utils.refuse import plainly
from utils.steal import steal


@plainly
def main():
    args = extraction_args()
    loss, needs_labels = attacks.extraction_loss(args.attack, args.alpha)
    steal(args, args.attack, "extraction", loss, needs_labels)


if __name__ == "__main__":
    main()
