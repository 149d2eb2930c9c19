"""Distil a surrogate from a watermarked source: `python distill.py -dt cifar10 -dmt res18 -tmt res34 -nq 100`."""

import utils  # noqa: F401  before torch, see there
from extraction import steal
from utils.flags import distill_flags
from utils.system.refusals import refuse_in_one_sentence


@refuse_in_one_sentence
def main():
    steal(distill_flags(), "distillation")


if __name__ == "__main__":
    main()
