"""Ask a suspect about images: a program, a server, an ONNX file or weights.

Programs and ONNX files run in processes of their own, whose output and time are bounded and which end with this one.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from tqdm import tqdm
from urllib3.util.retry import Retry

import models
from utils.answers import answers
from utils.answers.answers import Answer, Answers, Classes
from utils.data.files import write_pictures
from utils.runs.checkpoints import refuse_errors
from utils.runs.weights import read_suspect_model
from utils.system.files import ANSWERS_LIMIT, CHECKPOINT_LIMIT, open_private, read_bounded, sync
from utils.system.outside import REPLY_LIMIT, NoReply, post, run_bounded, short
from utils.system.refusals import Refusal
from utils.training.metrics import predict

LONGEST_PAUSE = 60.0  # seconds, whatever the server asks for
IMAGES_PER_CALL = 100  # of a command with {pngs}
ONNX_MEMORY, ONNX_SECONDS = 16 << 30, 600  # bytes of address space
GO_ON = ("of one suspect, with --keep-answers FILE, the same command goes on where it ended; or pass --allow-missing, "
         "or, if it refused, --leave-out-missing")
KEY = "pass the key or password that it asks for by --header 'Name: value'"
OTHER_FORM = "it is sent the bytes of a PNG file by POST; where it wants another form, pass a --command that sends that"
WAYS = {  # out of failures, by `NoReply.status`
    400: OTHER_FORM, 401: KEY, 403: KEY, 404: "correct the address",
    405: "correct the address, where nothing is taken by POST", 415: OTHER_FORM, 422: OTHER_FORM, 429: "lower --rate",
    "slow": "--timeout allows more",
    "program": "run it by hand on exported images and mend it: its stdout is the answers alone",
    "certificate": "correct the address, or name a file of the certificates that you trust in the environment variable "
    "REQUESTS_CA_BUNDLE"}


class Respondent(NamedTuple):
    """A suspect that sees the images when it is asked, see `program` and `server`.

    name, subject    how sentences name it, and its command or address, with a digest of its headers, as JSON
    images_per_call  how many image files `replies` takes; it gives (reply, content type) of each in their order, or
                     raises NoReply
    failures         why images were not answered where that is allowed, in the order in which they were asked
    """

    name: str
    subject: str | list
    images_per_call: int
    replies: Callable
    failures: list

    def ask(self, pngs: list[Path], classes: Classes, allow_missing: bool) -> list[Answer]:
        """The answers to image files, in their order, each in one of `answers.FORMS`.

        Refusal where there are none. With `allow_missing` a failure, a timeout, or a reply that is no answer gives one
        without a label; where a call for many images fails, each is asked alone.
        """
        try:
            replies = self.replies(pngs)
        except NoReply as failure:
            if not allow_missing:
                named = pngs[0].name if len(pngs) == 1 else f"{len(pngs)} images"
                ways = filter(None, (WAYS.get(failure.status), GO_ON))
                raise Refusal(f"{self.name} {failure}, for {named}: {'; or, '.join(ways)}") from failure
            if len(pngs) > 1:
                return [self.ask([png], classes, True)[0] for png in pngs]
            self.failures.append(f"{self.name} {failure}, for {pngs[0].name}")
            return [Answer()]
        given = []
        for reply, png in zip(replies, pngs):
            try:
                given.append(answers.read_reply(*reply, classes, f"{self.name}, {png.name}"))
            except Refusal as refusal:
                if not allow_missing:
                    raise
                self.failures.append(str(refusal))
                given.append(Answer())
        return given


def program(command: str, seconds: float = 60.0) -> Respondent:
    """A command line; {png} in it stands for the path of one image, the argument {pngs} for the paths of many.

    It gives a line for each of many, or all that it prints about one, in `seconds` an image. Refusal for a command that
    can never be run.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise Refusal(f"--command cannot be read as a shell would read it ({error})") from error
    many, one = command.count("{pngs}"), any("{png}" in part for part in parts)
    if not (parts.count("{pngs}") == many == 1 and not one) if many else not one:
        raise Refusal("--command needs {png} where the image's path belongs, or {pngs}, an argument of its own, "
                      "once, for the paths of many images; not both")
    if shutil.which(parts[0]) is None:
        raise Refusal(f"--command cannot be run: there is no program {parts[0][:80]!r} that may be started; what needs "
                      "a shell, as cd or &&, is sh -c 'cd DIR && CMD {png}'")

    def replies(pngs):
        started, limit = [], seconds * len(pngs)
        for part in parts:
            started += map(str, pngs) if part == "{pngs}" else [part.replace("{png}", str(pngs[0]))]
        try:
            status, out, err = run_bounded(started, limit, REPLY_LIMIT * len(pngs))
        except subprocess.TimeoutExpired as error:
            raise NoReply(f"gave no answer in {limit:g} s", False, status="slow") from error
        except (OSError, ValueError) as error:
            raise Refusal(f"--command cannot be run: {error}") from error
        except Refusal as error:
            raise NoReply(str(error), False) from error
        if status:
            raise NoReply(f"ended with status {status} ({short(err[-200:].decode(errors='replace'))!r})", False,
                          status="program")
        lines = out.splitlines() if many else [out]
        if len(lines) != len(pngs):
            raise NoReply(f"printed {len(lines)} lines for {len(pngs)} images, where {{pngs}} needs one for each, in "
                          "their order", False, status="program")
        return [(line, "") for line in lines]

    return Respondent("--command", command, IMAGES_PER_CALL if many else 1, replies, [])


def server(url: str, headers=(), seconds: float = 60.0, rate: float = 10.0, retries: int = 3) -> Respondent:
    """A server that classifies images; see the flags of `claim`. `seconds` bounds a reply, all of it.

    It is asked again after a passing failure, later each time. Refusal for an address or header that can never be sent.
    """
    sent = {"Content-Type": "image/png"}
    for header in headers:
        name, colon, value = (part.strip() for part in header.partition(":"))
        allowed = " " not in name and name.lower() not in ("content-length", "transfer-encoding")
        if not (allowed and colon and name and value and header.isprintable() and header.isascii()):
            raise Refusal(f"--header {header[:20]!r}...: pass 'Name: value' in ASCII, the name without spaces; "
                          "what follows from the image, leave it out")
        sent[name] = value
    try:
        parts = urllib.parse.urlsplit(url)
        requests.Request("POST", url, headers=sent, data=b"x").prepare()
        if parts.scheme not in ("http", "https") or "@" in parts.netloc or not url.isascii() or (
            " " in url or parts.port == 0
        ):
            raise ValueError
    except (requests.RequestException, ValueError) as error:  # without the address: it may hold a password
        raise Refusal("--url is no address that can be asked: pass one like https://host:8080/classify, in ASCII, "
                      "all else as %XX, a name and password by --header 'Authorization: Basic ...'") from error

    def replies(pngs):
        for attempt in itertools.count(1):
            begun = time.monotonic()
            try:
                reply = post(url, read_bounded(pngs[0]), sent, seconds)
                time.sleep(max(0.0, begun + 1 / rate - time.monotonic()))
                return [reply]
            except NoReply as failure:
                if not failure.passing or attempt > retries:
                    times = f" ({attempt} times)" if attempt > 1 else ""
                    raise NoReply(f"{failure}{times}", False, status=failure.status) from failure
                time.sleep(max(_pause(failure.later, attempt), 1 / rate))

    # a header may choose the model that is asked; a token may be renewed
    others = sorted(header for header in headers if header.partition(":")[0].strip().lower() != "authorization")
    subject = [url, hashlib.sha256(json.dumps(others).encode()).hexdigest()] if others else url
    return Respondent(f"--url {url}", subject, 1, replies, [])


def _pause(header: str | None, attempt: int) -> float:
    """Seconds to wait: what a Retry-After header asks for, else more each time; at most `LONGEST_PAUSE`."""
    with contextlib.suppress(Exception):  # no header, a year of twenty digits, two words, ...: it has an error for each
        return min(Retry().parse_retry_after(header), LONGEST_PAUSE)
    return min(0.5 * 2.0**attempt, LONGEST_PAUSE)


def check_pixels(mean, std, scale) -> tuple | None:
    """(mean, std) of pixels in [0, 1], 3 numbers each, so that a model gets (pixel * scale - mean) / std.

    None where no flag is set: --mean and --std, 1 or 3 numbers each, and --scale.
    """
    if mean is std is scale is None:
        return None
    mean, std = mean or [0.0], std or [1.0]
    if not {len(mean), len(std)} <= {1, 3}:
        raise Refusal("--mean and --std take 1 or 3 numbers each")
    return tuple([x / (scale or 1.0) for x in values * (3 // len(values))] for values in (mean, std))


def answers_of_onnx(path: Path, images, classes: Classes, pixels=None, allow_missing: bool = False) -> Answers:
    """The answers of a model (batch, 3, S, S) -> (batch, C) to uint8 images (m, 3, S, S), see `onnx_worker`.

    `pixels` are those of `check_pixels`. Rows of its first output that are no probabilities are taken for logits; rows
    that are not finite are missing answers where these are allowed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise Refusal(f"--suspect {path} needs the package onnxruntime: pip install onnxruntime")
    if not path.exists():
        raise Refusal(f"there is no file --suspect {path}: correct it")
    if not path.is_file() or path.stat().st_size > CHECKPOINT_LIMIT:
        raise Refusal(f"--suspect {path} is no ordinary file, or larger than {CHECKPOINT_LIMIT} bytes, the most that "
                      "is read of a model")
    np.save(given := io.BytesIO(), images.numpy())
    command = [sys.executable, str(Path(__file__).with_name("onnx_worker.py")), str(path.absolute()),
               json.dumps([ONNX_MEMORY, ONNX_SECONDS, pixels])]
    try:
        with tempfile.TemporaryDirectory() as nothing:  # where relative paths in the file lead
            status, out, err = run_bounded(command, ONNX_SECONDS, ANSWERS_LIMIT, given.getvalue(), nothing)
    except subprocess.TimeoutExpired as error:
        raise Refusal(f"--suspect {path} did not answer {len(images)} images in {ONNX_SECONDS} s") from error
    if status:
        said = (err.decode(errors="replace").strip().splitlines() or [f"it ended with status {status}"])[-1][-400:]
        raise Refusal(f"--suspect {path} {said}" if status == 3 else
                      f"--suspect {path} is no ONNX model that onnxruntime can run ({said}): export the triggers, ask "
                      "it yourself, and pass --predictions")
    rows = np.load(io.BytesIO(out), allow_pickle=False)
    answered = np.isfinite(rows).all(1)
    found = rows[answered]
    if len(found) and (found >= 0).all() and (abs(found.sum(1) - 1) <= 0.02).all():
        rows[answered] = np.log(np.maximum(found, 1e-300))  # they are probabilities
    return answers.answers_of_logits(rows, f"--suspect {path}", len(images), classes, allow_missing)


def answers_of_weights(path, architectures: list[str], images, classes: Classes, mean_std, pixels=None,
                       flag="--suspect", allow_missing: bool = False) -> Answers:
    """The answers of the model of `flag` to uint8 images (m, 3, S, S), with softmax probabilities.

    A checkpoint that names its classes is compared by name. Refusal for what `answers_of_logits` refuses, and where
    code that is not this project's fails.
    """
    model, names = read_suspect_model(path, architectures, len(classes.order), images.shape[-1], mean_std, pixels, flag)
    if names is not None:
        classes = classes.as_named_by(names, str(path))
    size = images.shape[-1]
    with contextlib.nullcontext() if models.is_own(model) else refuse_errors(
            f"{path} cannot be asked about images of {size} x {size} pixels", "mend the function that -mt names"):
        logits = predict(model, images).cpu().double().numpy()
    return answers.answers_of_logits(logits, path, len(images), classes, allow_missing)


def ask_all(respondent: Respondent, images, names: list[str], classes: Classes, allow_missing: bool, file=None,
            decided=None):
    """(answers to uint8 images (m, 3, S, S) under their file names, positions asked, in order, number of kept answers).

    They are asked in the alphabetical order of their names. No image is asked whose answer `file`, of `open_kept`,
    holds, where each new one is kept; where decided(answers so far, positions asked) says so the others are not asked.
    """
    about = [respondent.subject, sorted(names), classes.order]
    kept = read_kept(file, about, names, classes.names) if file else {}
    given, order, k = dict.fromkeys(names, Answer()), np.argsort(names).tolist(), respondent.images_per_call
    for start in tqdm(range(0, len(order), k), disable=None, unit="call", leave=False):
        asked = order[: start + k]
        rows = [i for i in asked[start:] if names[i] not in kept]
        given |= {names[i]: kept[names[i]] for i in asked[start:] if names[i] in kept}
        if rows:
            new = [names[i] for i in rows]
            with tempfile.TemporaryDirectory() as folder:  # a program sees no image before it is asked about it
                write_pictures(images[rows], new, Path(folder))
                found = respondent.ask([Path(folder) / name for name in new], classes, allow_missing)
            for name, answer in zip(new, found):
                given[name] = answer
                if file and answer.label >= 0:
                    append(file, json.dumps([name, answer._asdict()]).encode() + b"\n")
        if decided and decided(answers.gather_answers(list(given.values()), len(classes)), asked):
            break
    found = answers.gather_answers(list(given.values()), len(classes))
    answers.require_complete(respondent.name, found.labels[asked], [names[i] for i in asked], allow_missing)
    return found, asked, len(kept)


@contextlib.contextmanager
def open_kept(path: Path | None):
    """A private file of --keep-answers, made where it is not there yet and locked within; None where none is named."""
    if path is None:
        yield None
        return
    with open(path, "ab", opener=open_private) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refusal(f"--keep-answers {path} is in use by another claim: wait for it, or name another "
                          "file") from error
        except OSError:  # some network file systems have no locks
            pass
        yield file


def read_kept(file, about, names: list[str], classes: list[str]) -> dict:
    """{name: Answer} of a file of `open_kept`, which is begun where it is empty.

    A line of who was asked about what, and in which order of classes it answers, `about`; then a line for each answer,
    [name, {"label", "probabilities"}], in the owner's order, none for a reply that was no answer, as it may be one next
    time; of two the first counts; a last line that was cut off is removed. Refusal for another file or a damaged one.
    """
    path = file.name
    most = ANSWERS_LIMIT + 32 * len(names) * len(classes)  # bytes; a probability takes about 20
    content, begun = read_bounded(path, most), json.dumps(about).encode() + b"\n"
    content = b"" if begun.startswith(content) else content  # an empty one, or one that was cut off as it was begun
    try:
        first, *lines = (content or begun).split(b"\n")[:-1]
        if json.loads(first) != about:
            raise Refusal(f"--keep-answers {path} is of another suspect, other triggers, or other --columns or "
                          "--header: name another file")
        classes, where = Classes(classes, classes), f"--keep-answers {path}"
        kept = {name: answers.answer_of(value, classes, where) for name, value in map(json.loads, reversed(lines))
                if value != -1}  # as an older version wrote for no answer
        if not kept.keys() <= set(names):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refusal(f"--keep-answers {path} is damaged: name another file, and all images are asked again") from error
    file.truncate(content.rfind(b"\n") + 1)
    with contextlib.suppress(PermissionError):  # some file systems keep no permissions
        os.fchmod(file.fileno(), 0o600)  # the file may have been there, open to others
    append(file, b"" if content else begun)
    return kept


def append(file, line: bytes) -> None:
    """Add a line to an open file; it is on the disk when this returns."""
    file.write(line)
    file.flush()
    sync(file.fileno())
