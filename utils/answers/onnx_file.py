"""The answers of a model in an ONNX file, by onnxruntime on the CPU, in a process of its own with bounds.

The file is not trusted: it is read as data, names no further files, and the process that runs it has a limit on its
memory and its time.
"""

import importlib.util
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from utils.answers.answers import Answers
from utils.system.files import ANSWERS_LIMIT, CHECKPOINT_LIMIT
from utils.system.refusals import Refusal

MEMORY = 16 << 30  # bytes of address space
SECONDS = 600
WORKER = Path(__file__).with_name("onnx_worker.py")


def answers_of_onnx(path: Path, images, classes: int) -> Answers:
    """The answers of a model (batch, 3, S, S) -> (batch, C) to uint8 images (m, 3, S, S).

    It is given pixels in [0, 1], or bytes where it takes bytes, and normalises them itself; the first output counts.
    Rows that are no probabilities are taken for logits. Raises Refusal, which names `path`, where onnxruntime is not
    installed, where the file is no such model, takes too long or too much memory, or gives no finite numbers.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise Refusal(f"--suspect {path} needs the package onnxruntime: pip install onnxruntime")
    if not path.is_file():
        raise Refusal(f"--suspect {path} does not exist, or is no file: name a model that somebody exported")
    if path.stat().st_size > CHECKPOINT_LIMIT:
        raise Refusal(f"--suspect {path} is larger than {CHECKPOINT_LIMIT} bytes, the most that is read of a model")
    np.save(given := io.BytesIO(), images.numpy())
    command = [sys.executable, str(WORKER), str(path.absolute()), str(MEMORY), str(SECONDS)]
    try:
        with tempfile.TemporaryDirectory() as nothing:  # where relative paths in the file lead
            done = subprocess.run(command, input=given.getvalue(), capture_output=True, timeout=SECONDS, cwd=nothing)
    except subprocess.TimeoutExpired as error:
        raise Refusal(f"--suspect {path} did not answer {len(images)} images in {SECONDS} s") from error
    said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with status {done.returncode}"])
    if done.returncode == 3:
        raise Refusal(f"--suspect {path} {said[-1][:300]}")
    if done.returncode:
        reason = " ".join(said[-1].split())[:200]
        raise Refusal(f"--suspect {path} is no ONNX model that onnxruntime can run ({reason})")
    if len(done.stdout) > ANSWERS_LIMIT:
        raise Refusal(f"--suspect {path} answers with more than {ANSWERS_LIMIT} bytes")
    rows = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    if rows.shape[1] != classes:
        raise Refusal(f"--suspect {path} answers with {rows.shape[1]} classes, the triggers have {classes}")
    if not np.isfinite(rows).all():
        raise Refusal(f"--suspect {path} answers with numbers that are not finite")
    if not ((rows >= 0).all() and (abs(rows.sum(1) - 1) <= 0.02).all()):
        rows = np.exp(rows - rows.max(1, keepdims=True))
        rows /= rows.sum(1, keepdims=True)
    return Answers(rows.argmax(1), rows)
