"""Suspects in ONNX files: their answers, and files that do not fit or do harm."""

import importlib.util
import subprocess
import tempfile

import numpy as np
import pytest
import torch
from commands import verify
from onnx import TensorProto
from onnx_models import matrix, write_linear, write_with_external_data

from utils.answers import onnx_file
from utils.answers.onnx_file import answers_of_onnx
from utils.system.refusals import Refusal

IMAGES = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLAT = IMAGES.flatten(1).double() / 255


@pytest.fixture
def onnx(tmp_path):
    return tmp_path / "model.onnx"


def refusal(path, classes=10, images=IMAGES) -> str:
    with pytest.raises(Refusal) as caught:
        answers_of_onnx(path, images, classes)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch", ["batch", 4, 7, 1])
def test_answers_are_those_of_the_model_on_pixels_between_0_and_1(onnx, batch):
    answers = answers_of_onnx(write_linear(onnx, matrix(), batch=batch), IMAGES, 10)
    logits = FLAT @ torch.from_numpy(matrix()).double()
    assert np.array_equal(answers.labels, logits.argmax(1).numpy())
    assert np.allclose(answers.probabilities, logits.softmax(1).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind, scale", [(TensorProto.UINT8, 255), (TensorProto.FLOAT16, 1), (TensorProto.DOUBLE, 1)])
def test_a_model_is_given_the_numbers_it_takes(onnx, kind, scale):
    weights = matrix() / 100
    answers = answers_of_onnx(write_linear(onnx, weights, kind=kind), IMAGES, 10)
    logits = scale * FLAT @ torch.from_numpy(weights).double()
    assert np.allclose(answers.probabilities, logits.softmax(1).numpy(), atol=2e-3)


def test_probabilities_are_not_normalised_again(onnx):
    answers = answers_of_onnx(write_linear(onnx, matrix() / 100, softmax=True), IMAGES, 10)
    expected = (FLAT @ torch.from_numpy(matrix() / 100).double()).softmax(1).numpy()
    assert np.allclose(answers.probabilities, expected, atol=1e-5)


def test_a_claim_on_an_onnx_file(quick, owner, onnx, capsys):
    folder, triggers = owner
    # least squares: the weights that answer every trigger as it is labelled, with pixels in [0, 1]
    x, y = triggers.images.flatten(1).double() / 255, torch.eye(10, dtype=torch.float64)[triggers.labels]
    weights = torch.linalg.lstsq(x, y, driver="gelsd").solution.float().numpy()
    write_linear(onnx, weights)
    status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--suspect", onnx)
    assert status == 0 and "hits         40 of 40" in out
    status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--suspect", write_linear(onnx, matrix()))
    assert status == 1


def test_models_that_do_not_fit_are_refused_in_one_sentence(onnx):
    assert "the triggers are ('batch', 3, 32, 32)" in refusal(write_linear(onnx, matrix(size=48), size=48))
    assert "answers with 4 classes, the triggers have 10" in refusal(write_linear(onnx, matrix(4)))
    assert "takes 2 inputs" in refusal(write_linear(onnx, matrix(), inputs=2))
    assert "not a row of logits for each" in refusal(write_linear(onnx, matrix(), output="images"))
    assert "takes tensor(int64)" in refusal(write_linear(onnx, matrix(), kind=TensorProto.INT64))
    for value in (np.nan, np.inf):
        weights = matrix()
        weights[0] = value
        assert "not finite" in refusal(write_linear(onnx, weights))


def test_files_that_are_no_model_are_refused_in_one_sentence(onnx, owner, capsys):
    for content in (b"", b"no model", bytes(range(256)) * 40):
        onnx.write_bytes(content)
        assert "is no ONNX model that onnxruntime can run" in refusal(onnx)
    assert verify(capsys, "claim", owner[0], "--suspect", onnx)[0] == 2
    status, _, err = verify(capsys, "claim", owner[0], "--suspect", onnx.with_name("absent.onnx"))
    assert status == 2 and "absent.onnx" in err


@pytest.mark.parametrize("place", ["weights.bin", "../weights.bin", "{folder}/weights.bin"])
def test_a_model_cannot_read_further_files(place, onnx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the worst place to be asked from
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_with_external_data(onnx, matrix(), "weights.bin", place.format(folder=tmp_path))
    assert (tmp_path / "weights.bin").stat().st_size == matrix().nbytes
    assert "is no ONNX model that onnxruntime can run" in refusal(onnx)


def test_time_and_size_are_bounded(onnx, monkeypatch):
    write_linear(onnx, matrix())

    def too_slow(command, timeout, **more):
        assert command[-1] == str(timeout)  # the worker is given the same limit
        raise subprocess.TimeoutExpired(command, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(onnx_file.subprocess, "run", too_slow)
        assert "did not answer 7 images in 600 s" in refusal(onnx)
    monkeypatch.setattr(onnx_file, "CHECKPOINT_LIMIT", 100)
    assert "larger than 100 bytes" in refusal(onnx)


def test_a_file_that_is_not_there_is_told_in_one_sentence(owner, capsys):
    for name in ("nothere.onnx", "NOTHERE.ONNX"):
        status, _, err = verify(capsys, "claim", owner[0], "--suspect", name)
        assert status == 2 and f"there is no file {name}" in err, err


def test_without_onnxruntime_one_sentence_says_how_to_get_it(onnx, monkeypatch):
    write_linear(onnx, matrix())
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert "pip install onnxruntime" in refusal(onnx)
