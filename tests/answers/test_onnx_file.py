"""Suspects in ONNX files: their answers, and files that do not fit or do harm."""

import io
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from commands import refused, verify
from onnx import TensorProto, external_data_helper, helper, load_model, numpy_helper, save_model

import models
from utils.answers import ask
from utils.answers.answers import Classes
from utils.answers.ask import answers_of_onnx, check_pixels
from utils.system.refusals import Refusal

FLOAT = TensorProto.FLOAT
IMAGES = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEN = Classes([str(i) for i in range(10)])
FLAT = IMAGES.flatten(1).double() / 255


def matrix(classes=10, size=32):
    """Weights of `write_linear`, (3 * size * size, classes)."""
    return np.random.default_rng(0).normal(size=(3 * size * size, classes)).astype(np.float32)


def write_linear(path, weights, batch="batch", size=32, kind=FLOAT, softmax=False, inputs=("images",), output="logits"):
    """A model images (batch, 3, size, size) -> flattened images @ weights, as another program would write it."""
    nodes = [helper.make_node("Cast", ["images"], ["pixels"], to=FLOAT),
             helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["z"]),
             helper.make_node("Softmax" if softmax else "Identity", ["z"], ["logits"])]
    shapes = {"logits": [None, weights.shape[1]], "pixels": [None, 3, size, size]}
    graph = helper.make_graph(
        nodes, "linear", [helper.make_tensor_value_info(name, kind, [batch, 3, size, size]) for name in inputs],
        [helper.make_tensor_value_info(output, FLOAT, shapes[output])], [numpy_helper.from_array(weights, "weights")])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def write_with_external_data(path, weights, file, place):
    """`write_linear` whose weights are in a `file` beside it, and which says that they are in `place`."""
    model = load_model(write_linear(path, weights))
    external_data_helper.convert_model_to_external_data(model, location=file, size_threshold=0)
    save_model(model, path)
    model = load_model(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = place if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def onnx(tmp_path):
    return tmp_path / "model.onnx"


def refusal(path, classes=10, images=IMAGES) -> str:
    with pytest.raises(Refusal) as caught:
        answers_of_onnx(path, images, Classes([str(i) for i in range(classes)]))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch", ["batch", 4, 7, 1])
def test_answers_are_those_of_the_model_on_pixels_between_0_and_1(onnx, batch):
    answers = answers_of_onnx(write_linear(onnx, matrix(), batch=batch), IMAGES, TEN)
    logits = FLAT @ torch.from_numpy(matrix()).double()
    assert np.array_equal(answers.labels, logits.argmax(1).numpy())
    assert np.allclose(answers.probabilities, logits.softmax(1).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind, scale, softmax", [
    (TensorProto.UINT8, 255, False), (TensorProto.FLOAT16, 1, False), (TensorProto.DOUBLE, 1, False), (FLOAT, 1, True)])
def test_a_model_is_given_the_numbers_it_takes_and_probabilities_are_not_normalised_again(onnx, kind, scale, softmax):
    answers = answers_of_onnx(write_linear(onnx, matrix() / 100, kind=kind, softmax=softmax), IMAGES, TEN)
    logits = scale * FLAT @ torch.from_numpy(matrix() / 100).double()
    assert np.allclose(answers.probabilities, logits.softmax(1).numpy(), atol=2e-3)


def test_models_that_do_not_fit_are_refused_in_one_sentence(onnx):
    assert "('batch', 3, 32, 32): export the triggers" in refusal(write_linear(onnx, matrix(size=48), size=48))
    said = refusal(write_linear(onnx, matrix(4)))
    assert "shape (7, 4), not with a row for each of 7 images and a number for each of 10 classes" in said
    assert "takes 2 inputs" in refusal(write_linear(onnx, matrix(), inputs=("images", "more")))
    assert "not a row of logits for each: write it anew" in refusal(write_linear(onnx, matrix(), output="pixels"))
    assert "takes tensor(int64)" in refusal(write_linear(onnx, matrix(), kind=TensorProto.INT64))
    weights = matrix()
    weights[0] = np.nan
    assert "not finite" in refusal(write_linear(onnx, weights))
    with pytest.raises(Refusal, match="not finite"):  # of all images: there are no answers
        answers_of_onnx(onnx, IMAGES, TEN, allow_missing=True)


@pytest.mark.parametrize("operation, shape", [("Softmax", [None, 10]), ("Transpose", [10, None]), ("Neg", [None, 10])])
def test_of_several_outputs_the_first_is_taken_unless_another_may_be_the_answer(operation, shape, onnx):
    alone = answers_of_onnx(write_linear(onnx, matrix()), IMAGES, TEN)
    model = load_model(onnx)
    model.graph.node.append(helper.make_node(operation, ["logits"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", FLOAT, shape))
    save_model(model, onnx)
    if operation == "Neg":
        assert "gives 2 outputs, of which several may be its answers: write it anew" in refusal(onnx)
    else:
        assert np.array_equal(answers_of_onnx(onnx, IMAGES, TEN).probabilities, alone.probabilities)


def test_files_that_are_no_model_are_refused_in_one_sentence(onnx, owner):
    onnx.write_bytes(bytes(range(256)) * 40)
    assert "is no ONNX model that onnxruntime can run" in refusal(onnx)
    claim = ("utils.verify", "claim", owner[0], "--trust-owner", "--suspect")
    assert "absent.onnx" in refused(*claim, onnx.with_name("absent.onnx"))


def test_weights_beside_the_model_are_read(onnx):
    """As the default exporter stores them; the answers are those of the whole file."""
    whole = answers_of_onnx(write_linear(onnx, matrix()), IMAGES, TEN)
    beside = answers_of_onnx(write_with_external_data(onnx, matrix(), "weights.bin", "weights.bin"), IMAGES, TEN)
    assert (onnx.parent / "weights.bin").stat().st_size == matrix().nbytes and onnx.stat().st_size < 1000
    assert np.array_equal(whole.probabilities, beside.probabilities)


@pytest.mark.parametrize("place", ["../weights.bin", "{folder}/weights.bin", "link.bin", "pipe", ""])
def test_a_model_cannot_read_files_elsewhere(place, onnx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the worst place to be asked from
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_with_external_data(onnx, matrix(), "weights.bin", place.format(folder=tmp_path))
    (tmp_path / "link.bin").symlink_to(tmp_path / "weights.bin")
    os.mkfifo(tmp_path / "pipe")
    said = refusal(onnx)
    assert any(words in said for words in ("points outside", "should be a relative path", "is a symbolic link",
                                           "not regular file", "should not be empty"))


def test_a_sparse_tensor_cannot_be_read_from_elsewhere(onnx, tmp_path):
    """onnx does not follow its place, and onnxruntime below 1.28 would."""
    model = load_model(write_linear(onnx, matrix()))
    values = numpy_helper.from_array(np.ones(10, np.float32), "bias")
    (tmp_path / "weights.bin").write_bytes(values.raw_data)
    external_data_helper.set_external_data(values, str(tmp_path / "weights.bin"))
    values.ClearField("raw_data")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.arange(10)), [10])
    model.graph.sparse_initializer.append(sparse)
    onnx.write_bytes(model.SerializeToString())
    assert "keeps a sparse tensor in another file, which is not read" in refusal(onnx)
    model.graph.ClearField("sparse_initializer")
    model.graph.node.append(helper.make_node("Constant", [], ["bias"], sparse_value=sparse))
    onnx.write_bytes(model.SerializeToString())
    assert "keeps a sparse tensor in another file, which is not read" in refusal(onnx)


def test_bytes_and_time_are_bounded(onnx, monkeypatch):
    write_with_external_data(onnx, matrix(), "weights.bin", "weights.bin")
    model = load_model(onnx, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = str(ask.ONNX_MEMORY) if entry.key == "length" else entry.value
    os.truncate(onnx.with_name("weights.bin"), 2 * ask.ONNX_MEMORY)  # which takes no space
    onnx.write_bytes(model.SerializeToString())
    assert "MemoryError" in refusal(onnx)
    monkeypatch.setattr(ask, "ONNX_SECONDS", 0.01)
    assert "did not answer 7 images in 0.01 s" in refusal(onnx)
    monkeypatch.setattr(ask, "CHECKPOINT_LIMIT", 100)
    assert "larger than 100 bytes" in refusal(onnx)


def test_the_judge_says_which_pixels_a_model_wants(onnx, owner):
    """weights / 255 on pixels from 0 to 255 are weights on pixels from 0 to 1; a mean moves the logits."""
    weights = matrix() / 100
    wanted = answers_of_onnx(write_linear(onnx, weights), IMAGES, TEN).probabilities
    found = answers_of_onnx(write_linear(onnx, weights / 255), IMAGES, TEN, check_pixels(None, None, 255.0))
    assert np.allclose(wanted, found.probabilities, atol=1e-4)
    moved = answers_of_onnx(write_linear(onnx, weights * 0.5), IMAGES, TEN, check_pixels([0.1, 0.2, 0.3], [0.5], None))
    shift = np.repeat([0.1, 0.2, 0.3], 32 * 32) @ weights
    logits = (FLAT @ torch.from_numpy(weights).double()).numpy() - shift
    assert np.array_equal(moved.labels, logits.argmax(1))
    assert check_pixels([51.0, 102.0, 0.0], [255.0], 255.0) == ([0.2, 0.4, 0.0], [1.0] * 3)  # of pixels up to 255 all
    assert check_pixels(None, None, None) is None
    found, file = [], onnx.with_name("claim.json")
    for flags in ((), ("--scale", 2, "--mean", 0.1, 0.2, 0.3, "--std", 0.5)):
        verify("claim", owner[0], "--trust-owner", "--suspect", onnx, *flags, "--json", file)
        found.append(json.loads(file.read_text())["tests"]["T1p"]["log10_p"])
    assert found[0] != found[1]
    with pytest.raises(Refusal, match="1 or 3 numbers"):
        check_pixels([0.1, 0.2], None, None)


@pytest.mark.parametrize("softmax", [False, True])
def test_rows_that_are_not_finite_are_missing_answers_where_these_are_allowed(onnx, softmax):
    """Of one image, whose first two pixels are white, the logits overflow."""
    weights, images = matrix() / 100, IMAGES.clone()
    weights[:2], images[:, 0, 0, :2] = 3e38, 0
    images[3, 0, 0, :2] = 255
    write_linear(onnx, weights, softmax=softmax)
    assert "not finite" in refusal(onnx, images=images)
    answers = answers_of_onnx(onnx, images, TEN, allow_missing=True)
    weights[:2] = 0
    wanted = images.flatten(1).double() / 255 @ torch.from_numpy(weights).double()
    others = [i for i in range(7) if i != 3]
    assert answers.labels[3] == -1 and np.array_equal(answers.labels[others], wanted.argmax(1)[others])
    assert np.allclose(answers.probabilities[others], wanted.softmax(1)[others], atol=1e-3)  # not normalised again


def test_logits_that_are_not_negative_are_no_probabilities(onnx):
    weights = abs(matrix()) / 1000
    answers = answers_of_onnx(write_linear(onnx, weights), IMAGES, TEN)
    wanted = (FLAT @ torch.from_numpy(weights).double()).softmax(1).numpy()
    assert np.allclose(answers.probabilities, wanted, atol=1e-4)


def test_the_time_of_a_worker_is_bounded_without_its_caller_too(onnx):
    np.save(given := io.BytesIO(), IMAGES.numpy())
    status = [subprocess.run([sys.executable, ask.__file__.replace("ask.py", "onnx_worker.py"),
                              write_linear(onnx, matrix()), json.dumps([ask.ONNX_MEMORY, seconds, None])],
                             input=given.getvalue(), capture_output=True).returncode for seconds in (600, 0)]
    assert status[0] == 0 > status[1]  # ended by a signal


def test_weights_whose_answers_overflow_are_asked_as_onnx_files_are(monkeypatch):
    logits = torch.eye(10)[:7].index_fill(0, torch.tensor(3), torch.nan)
    monkeypatch.setattr(ask, "predict", lambda model, images: logits)
    monkeypatch.setattr(ask, "read_suspect_model", lambda *given: (models.build("res18", 10, width=2), None))
    of = lambda **more: ask.answers_of_weights("w.pt", [], IMAGES, TEN, None, **more)
    assert of(allow_missing=True).labels.tolist() == [0, 1, 2, -1, 4, 5, 6]
    with pytest.raises(Refusal, match="w.pt answers with numbers that are not finite"):
        of()
