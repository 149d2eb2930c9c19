"""Run an ONNX model in a process of its own, with bounds; started by `ask`, imports nothing of this project.

    python onnx_worker.py MODEL '[MEMORY_BYTES, SECONDS, null or [mean, std]]' < images.npy > logits.npy

Images are uint8 (m, 3, S, S); the model sees pixels in [0, 1], normalised by mean and std, or bytes where it takes
bytes. Exit status 3: the last line on stderr is a sentence for the user.
"""

import io
import json
import resource
import sys

THREADS = 2
KINDS = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
         "tensor(uint8)": "uint8"}
OTHER_WAY = "export the triggers, ask it yourself, and pass --predictions"


def main(path: str, memory: int, seconds: int, pixels) -> None:
    """Answer all images on stdin."""
    import numpy as np
    import onnx
    import onnxruntime

    images = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CPU, THREADS * seconds)  # after the caller's time is over
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 4
    # which reads weights beside the model too, but no links and nothing outside its folder
    model = onnx.load_model(path)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors_of(model, onnx.TensorProto)):
        refuse("keeps a sparse tensor in another file, which is not read")  # but the session would, wherever it is
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    if len(inputs := session.get_inputs()) != 1:
        refuse(f"takes {len(inputs)} inputs, not one batch of images: {OTHER_WAY}")
    shape, kind, wanted = inputs[0].shape, inputs[0].type, ("batch", *images.shape[1:])
    if kind not in KINDS:
        refuse(f"takes {kind}, not floating-point pixels in [0, 1] or bytes")
    if kind == "tensor(uint8)" and pixels:
        refuse("takes bytes, which --mean, --std and --scale cannot be for: leave them out")
    if len(shape) != 4 or any(isinstance(a, int) and a != b for a, b in zip(shape[1:], wanted[1:])):
        refuse(f"takes images of shape {tuple(shape)}, the triggers are {wanted}: {OTHER_WAY}")
    mean, std = (np.array(part, np.float32)[:, None, None] for part in pixels or ([0.0] * 3, [1.0] * 3))
    length = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 100
    rows = []
    for start in range(0, len(images), length):
        part = images[start : start + length]
        x = np.concatenate([part, part[:1].repeat(length - len(part), 0)])  # a model may fix its batch
        if kind != "tensor(uint8)":
            x = ((x / np.float32(255) - mean) / std).astype(KINDS[kind])
        output, *others = session.run(None, {inputs[0].name: x})
        output = np.asarray(output)
        if output.ndim != 2 or len(output) != len(x) or output.dtype.kind != "f":
            refuse(f"gives {output.dtype} {output.shape} for {len(x)} images, not a row of logits for each: write it "
                   f"anew with these as its first output, or {OTHER_WAY}")
        # logits beside probabilities name the same classes; those of an auxiliary classifier, or features, do not
        best = output.argmax(1)[:, None]
        if any(isinstance(other, np.ndarray) and other.shape == output.shape
               and (np.take_along_axis(other, best, 1)[:, 0] < other.max(1)).any() for other in others):
            refuse(f"gives {1 + len(others)} outputs, of which several may be its answers: write it anew with one of "
                   "them alone")
        rows.append(output[: len(part)].astype(np.float64))
    np.save(sys.stdout.buffer, np.concatenate(rows))


def tensors_of(message, kind):
    """Every tensor in a protobuf message, however deep; `kind` is its class."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from tensors_of(part, kind)


def limit(what: int, most: int) -> None:
    """Lower a limit of this process, which may be lower already."""
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def refuse(sentence: str) -> None:
    """End with a sentence that begins with the model's file."""
    print(sentence, file=sys.stderr)
    sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1], *json.loads(sys.argv[2]))
