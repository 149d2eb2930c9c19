"""What the command lines of all three scripts share: how help is printed, and -tt."""

import argparse
import shutil

from utils.system.refusals import Parser

TRAIN_TYPES = ("none", "base", "margin", "ewe", "rs")
WIDTH = 110  # columns of the help at most


def parser_of(description: str, script: str) -> Parser:
    width = min(WIDTH, shutil.get_terminal_size().columns - 2)
    formatter = lambda prog: ShortHelp(prog, max_help_position=32, width=width)
    return Parser(prog=script, usage=f"python {script} [flags]", description=description, formatter_class=formatter,
                  allow_abbrev=False)


class ShortHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Help in which most flags take one line: one name for a flag's value, and no default that says nothing."""

    def _format_action_invocation(self, action):
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = action.metavar or ("" if action.choices else action.option_strings[-1].lstrip("-").upper()[:1])
        several = " ..." if action.nargs == "+" else ""
        return f"{', '.join(action.option_strings)} {value}{several}".rstrip()

    def _get_help_string(self, action):
        text = action.help
        if action.choices and not all(str(choice) in text for choice in action.choices):
            text = f"{text}: {', '.join(map(str, action.choices))}"
        if isinstance(action.default, bool | None) or action.default in ("", [], argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def add_train_type(parser) -> None:
    parser.add_argument("-tt", "--train-type", default="margin", choices=TRAIN_TYPES,
                        help="none: no watermark (benign); base: triggers by ERM; margin: the paper's method; rivals: "
                        "ewe, rs (their flags: train.py -tt ewe --help)")
