"""Run an ONNX model in a process of its own, with bounds; started by `ask`, imports nothing of this project.

    python onnx_worker.py MODEL '[MEMORY_BYTES, SECONDS, FILE_BYTES, null or [mean, std]]' < images.npy > logits.npy

Images are uint8 (m, 3, S, S); the model sees pixels in [0, 1], normalised by mean and std, or bytes where it takes
bytes. Exit status 3: the last line on stderr is a sentence for the user.
"""

import io
import json
import os
import resource
import stat
import sys

THREADS = 2


def main(path: str, memory: int, seconds: int, limit: int, pixels) -> None:
    """Answer all images on stdin."""
    import numpy as np
    import onnxruntime

    images = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (THREADS * seconds, THREADS * seconds))  # after the caller's time is over
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 4
    model = read_file(path, limit, "")
    beside = files_beside(model, path, limit - len(model))  # alive until the session is made
    if beside:
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            refuse("has its weights in files beside it, which this onnxruntime cannot be given: install a newer one")
        options.add_external_initializers_from_files_in_memory(list(beside), list(beside.values()),
                                                               [len(content) for content in beside.values()])
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
    if kind is np.uint8 and pixels:
        refuse("takes bytes, which --mean, --std and --scale cannot be for: leave them out")
    wanted = ("batch", *images.shape[1:])
    if len(shape) != 4 or any(isinstance(a, int) and a != b for a, b in zip(shape[1:], wanted[1:])):
        refuse(f"takes images of shape {tuple(shape)}, the triggers are {wanted}")
    mean, std = (np.array(part, np.float32)[:, None, None] for part in pixels or ([0.0] * 3, [1.0] * 3))
    length = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 100
    rows = []
    for start in range(0, len(images), length):
        part = images[start : start + length]
        full = np.concatenate([part, part[:1].repeat(length - len(part), 0)])  # a model may fix its batch
        x = full if kind is np.uint8 else ((full / np.float32(255) - mean) / std).astype(kind)
        output = np.asarray(session.run(None, {inputs[0].name: x})[0])
        if output.ndim != 2 or len(output) != len(full) or output.dtype.kind != "f":
            refuse(f"gives {output.dtype} {output.shape} for {len(full)} images, not a row of logits for each")
        rows.append(output[: len(part)].astype(np.float64))
    np.save(sys.stdout.buffer, np.concatenate(rows))


def files_beside(model: bytes, path: str, limit: int) -> dict:
    """{name: content} of the files that hold a model's weights, from its own folder alone, `limit` bytes in all."""
    try:
        import onnx
    except ImportError:  # then onnxruntime says what it lacks
        return {}
    found = {}
    for name in sorted(locations(onnx.load_model_from_string(model))):
        if not name or name != os.path.basename(name) or name in (".", ".."):
            refuse(f"names {name[:80]!r} as a file of its weights, which is not in its own folder: no other is read")
        found[name] = read_file(os.path.join(os.path.dirname(path), name), limit, f"has its weights in {name[:80]!r}, ")
        limit -= len(found[name])
    return found


def locations(message) -> set:
    """The external files that the tensors of a protobuf message name."""
    found = {entry.value for entry in getattr(message, "external_data", ()) if entry.key == "location"}
    for field, value in message.ListFields():
        if field.message_type is not None and field.name != "external_data":
            parts = value if hasattr(value, "__len__") else [value]
            found |= {name for part in parts if hasattr(part, "ListFields") for name in locations(part)}
    return found


def read_file(path: str, limit: int, what: str) -> bytes:
    """The bytes of an ordinary file; whoever names another or a larger one is refused."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if what else 0)), "rb") as file:
            about = os.fstat(file.fileno())
            if stat.S_ISREG(about.st_mode) and about.st_size <= limit:
                return file.read(limit)
            refuse(f"{what}is no ordinary file, or larger than {limit} bytes, the most that is read of a model")
    except OSError as error:
        refuse(f"{what}cannot be read ({error.strerror}): put the file beside it")


def refuse(sentence: str) -> None:
    """End with a sentence that begins with the model's file."""
    print(sentence, file=sys.stderr)
    sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1], *json.loads(sys.argv[2]))
