"""Flags and folder names of runs of half a second on digits, which many tests share."""

DATA = ("-dt", "digits", "-nq", 10, "--train-size", 128, "--batch-size", 64, "--width", 2, "--device", "cpu")
TRAIN = (*DATA, "-mt", "vgg11", "--trigger-batch", 4, "--steps", 2, "-ep", 1)
STEAL = (*DATA, "-tmt", "vgg11", "-dmt", "vgg11", "-ep", 1)
SOURCE, BASE, BENIGN = (f"digits_vgg11_{kind}_10_" for kind in ("margin", "base", "none"))
