"""Run an ONNX model in a process of its own, with bounds; started by `onnx_file`, imports nothing of this project.

    python onnx_worker.py MODEL MEMORY_BYTES SECONDS < images.npy > logits.npy

Images are uint8 (m, 3, S, S). Exit status 3: the last line on stderr is a sentence for the user.
"""

import io
import resource
import sys

THREADS = 2


def main(path: str, memory: int, seconds: int) -> None:
    """Answer all images on stdin; the model sees pixels in [0, 1], or bytes where it takes bytes."""
    import numpy as np
    import onnxruntime

    images = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (THREADS * seconds, THREADS * seconds))  # after the caller's time is over
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 4
    with open(path, "rb") as file:
        model = file.read()
    # from memory, so that the model cannot name further files
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1:
        refuse(f"takes {len(inputs)} inputs, not one batch of images")
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
             "tensor(uint8)": np.uint8}
    kind, shape = kinds.get(inputs[0].type), inputs[0].shape
    if kind is None:
        refuse(f"takes {inputs[0].type}, not floating-point pixels in [0, 1] or bytes")
    wanted = ("batch", *images.shape[1:])
    if len(shape) != 4 or any(isinstance(a, int) and a != b for a, b in zip(shape[1:], wanted[1:])):
        refuse(f"takes images of shape {tuple(shape)}, the triggers are {wanted}")
    length = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 100
    rows = []
    for start in range(0, len(images), length):
        part = images[start : start + length]
        full = np.concatenate([part, part[:1].repeat(length - len(part), 0)])  # a model may fix its batch
        x = full if kind is np.uint8 else (full / np.float32(255)).astype(kind)
        output = np.asarray(session.run(None, {inputs[0].name: x})[0])
        if output.ndim != 2 or len(output) != len(full) or output.dtype.kind != "f":
            refuse(f"gives {output.dtype} {output.shape} for {len(full)} images, not a row of logits for each")
        rows.append(output[: len(part)].astype(np.float64))
    np.save(sys.stdout.buffer, np.concatenate(rows))


def refuse(sentence: str) -> None:
    """End with a sentence that begins with the model's file."""
    print(sentence, file=sys.stderr)
    sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
