"""Errors of the machine become one sentence."""

import pytest
import torch

from utils.system.refusals import Refusal, printable, refuse_in_one_sentence


def test_out_of_memory_names_the_flags_that_help(monkeypatch, capsys):

    @refuse_in_one_sentence
    def main(error):
        raise error

    for error in (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()):
        with pytest.raises(SystemExit) as end:
            main(error)
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1
        assert all(word in err for word in ("--batch-size", "--width", "--amp"))


def test_what_others_wrote_does_not_steer_the_terminal(capsys):

    @refuse_in_one_sentence
    def main():
        raise Refusal("a server said \x1b[31mred\x1b[0m \x9b \u202e \udcff,\n\tand \u00e4")

    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert err.endswith("error: a server said \\x1b[31mred\\x1b[0m \\x9b \\u202e \\udcff, and \u00e4\n")
    assert printable("two\nlines\r") == "two\nlines\\r"
