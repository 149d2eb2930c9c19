"""Small ONNX files, written with the `onnx` package as a third program would."""

import numpy as np
from onnx import TensorProto, checker, external_data_helper, helper, load_model, numpy_helper, save_model

FLOAT = TensorProto.FLOAT


def matrix(classes=10, size=32, seed=0):
    """Weights of `write_linear`, (3 * size * size, classes)."""
    return np.random.default_rng(seed).normal(size=(3 * size * size, classes)).astype(np.float32)


def write_linear(path, weights, batch="batch", size=32, kind=FLOAT, softmax=False, inputs=1, output="logits"):
    """A model images (batch, 3, size, size) -> flattened images @ weights; returns the path.

    softmax  give probabilities
    inputs   with 2, a second input is added to the logits
    output   "logits", or "images", which are no row for each image
    """
    images = helper.make_tensor_value_info("images", kind, [batch, 3, size, size])
    more = [helper.make_tensor_value_info("more", FLOAT, ["batch", weights.shape[1]])] * (inputs - 1)
    nodes = [helper.make_node("Cast", ["images"], ["pixels"], to=FLOAT),
             helper.make_node("Flatten", ["pixels"], ["flat"]),
             helper.make_node("MatMul", ["flat", "weights"], ["z"])]
    if more:
        nodes.append(helper.make_node("Add", ["z", "more"], ["sum"]))
    last = "sum" if more else "z"
    nodes.append(helper.make_node("Softmax" if softmax else "Identity", [last], ["logits"]))
    outputs = {"logits": helper.make_tensor_value_info("logits", FLOAT, [None, weights.shape[1]]),
               "images": helper.make_tensor_value_info("pixels", FLOAT, [None, 3, size, size])}
    graph = helper.make_graph(nodes, "linear", [images, *more], [outputs[output]],
                              [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    save_model(model, path)
    return path


def write_with_external_data(path, weights, file, place):
    """`write_linear` whose weights are in a `file` beside it, and which says that they are in `place`."""
    model = load_model(write_linear(path, weights))
    external_data_helper.convert_model_to_external_data(model, location=file, size_threshold=0)
    save_model(model, path)
    model = load_model(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = place
    path.write_bytes(model.SerializeToString())
    return path
