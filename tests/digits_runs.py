"""Flags and folder names of runs of a res18 on digits; a vgg11, see `small_runs`, takes less than half the time."""

from small_runs import DATA

TRAIN = (*DATA, "-mt", "res18", "--trigger-batch", 4, "--steps", 2, "-ep", 1)
STEAL = (*DATA, "-tmt", "res18", "-dmt", "res18", "-ep", 1)
SOURCE, BENIGN = "digits_res18_margin_10_", "digits_res18_none_10_"
