"""Errors of the machine become one sentence."""

import pytest
import torch

from utils.system.refusals import refuse_in_one_sentence


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
