"""Distil a surrogate from a watermarked source: `python distill.py -dt cifar10 -dmt res18 -tmt res34 -nq 100`."""

from utils.attacks.theft import open_theft
from utils.command_line.attacks import distill_command
from utils.system.machine import choose_device
from utils.system.refusals import refuse_in_one_sentence


@refuse_in_one_sentence
def main():
    command = distill_command()
    device = choose_device(command.theft.device)
    theft = open_theft(command.theft, command.attack, device)
    command.attack.run(theft)


if __name__ == "__main__":
    main()
