"""Suspects behind a server: what it may answer, how it may fail, and how it is asked."""

import email.utils
import json
import threading
import time

import pytest
from answering_server import answering, label_of
from commands import verify
from owner_runs import M

from utils.answers import ask as server_module
from utils.answers.answers import Answer, Classes
from utils.answers.ask import Server
from utils.data.files import write_pictures
from utils.system.outside import REPLY_LIMIT
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")
CLASSES = [str(i) for i in range(10)]


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were asked for, in seconds; none is taken."""
    taken = []
    monkeypatch.setattr(server_module.time, "sleep", taken.append)
    return taken


@pytest.fixture
def png(owner, tmp_path):
    """The path of a trigger's picture."""
    write_pictures(owner[1].images, [f"{i:016x}.png" for i in range(M)], tmp_path)
    return tmp_path / f"{0:016x}.png"


def ask(png, reply, allow_missing=False, **settings):
    """([answers], what was served) of one image; `reply` as in `answering`."""
    with answering(reply) as served:
        answers = Server(served.url, **{"retries": 2} | settings).ask([png], Classes(CLASSES), allow_missing)
    return answers, served


def refusal(png, reply, **settings) -> str:
    with pytest.raises(Refusal) as caught:
        ask(png, reply, **settings)
    sentence = str(caught.value)
    assert sentence.startswith("--url http://127.0.0.1") and "\n" not in sentence and png.name in sentence
    return sentence


# ---- claims ---------------------------------------------------------------------------------------------------------

FORMS = {
    "number": lambda y: str(y), "line": lambda y: f" {y}\n".encode(), "json number": lambda y: json.dumps(y),
    "json label": lambda y: json.dumps({"label": str(y)}),
    "probabilities": lambda y: json.dumps({"probabilities": [float(i == y) for i in range(10)]}),
    "by name": lambda y: json.dumps({"probabilities": {str(i): float(i == y) for i in range(10)}}),
    "list": lambda y: (200, json.dumps([float(i == y) for i in range(10)]), {"Content-Type": "application/json"}),
    "scores": lambda y: json.dumps([{"label": str(y), "score": 0.9}, {"label": str((y + 1) % 10), "score": 0.1}]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_server_that_gives_the_assigned_labels_is_claimed(form, owner, capsys, pauses):
    folder, triggers = owner
    with answering(lambda k, pixels: FORMS[form](label_of(triggers, pixels))) as served:
        status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--url", served.url)
    assert status == 0 and f"hits         {M} of {M}" in out and len(served.images) == M
    assert all(headers["Content-Type"] == "image/png" for headers in served.headers)


# ---- what is sent ---------------------------------------------------------------------------------------------------


def test_headers_and_pixels_arrive(owner, png, pauses):
    _, served = ask(png, lambda k, pixels: "3", headers=("X-Key: a: b", "Accept: text/plain"))
    assert served.headers[0]["X-Key"] == "a: b" and served.headers[0]["Accept"] == "text/plain"
    assert (served.images[0] == owner[1].images[0].numpy()).all()


def test_the_rate_is_kept(png, pauses):
    ask(png, lambda k, pixels: "3", rate=0.5)
    assert len(pauses) == 1 and 1 < pauses[0] <= 2
    pauses.clear()
    ask(png, lambda k, pixels: "3", rate=1e6)
    assert pauses == [0.0]


# ---- passing failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_is_asked_again_later_each_time(status, png, pauses):
    answers, served = ask(png, lambda k, pixels: "7" if k == 2 else (status, "busy", {}))
    assert answers == [Answer(7)] and len(served.images) == 3 and pauses[:2] == [1.0, 2.0]


@pytest.mark.parametrize("wait, least, most", [
    ("7", 7, 7), ("0.5", 0.5, 0.5), ("100000", 60, 60), (lambda: email.utils.formatdate(time.time() + 30), 25, 30),
    ("soon", 1, 1), ("nan", 1, 1), ("-5", 1, 1)])
def test_retry_after_is_obeyed_up_to_a_minute(wait, least, most, png, pauses):
    after = wait() if callable(wait) else wait
    ask(png, lambda k, pixels: "7" if k else (429, "", {"Retry-After": after}))
    assert least <= pauses[0] <= most


def test_no_pause_is_longer_than_a_minute(png, pauses):
    refusal(png, lambda k, pixels: (503, "", {}), retries=8)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_server_that_stays_busy_is_refused_or_its_answers_are_missing(png, pauses):
    said = refusal(png, lambda k, pixels: (503, "come  back\nlater", {}))
    assert "status 503 'come back later'" in said and "(3 times)" in said and "--keep-answers FILE" in said
    answers, served = ask(png, lambda k, pixels: (503, "", {}), allow_missing=True)
    assert answers == [Answer()] and len(served.images) == 3


# ---- failures that stay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply, words", [
    ((404, "no such page", {}), "status 404 'no such page'"), ((401, "", {}), "status 401"),
    ((302, "", {"Location": "http://127.0.0.1:9/other"}), "redirects to 'http://127.0.0.1:9/other'"),
    (b"7" * (REPLY_LIMIT + 1), "more than 1048576 bytes")])
def test_what_asking_again_cannot_mend_is_refused_at_once(reply, words, png, pauses):
    requests = []
    said = refusal(png, lambda k, pixels: requests.append(k) or reply)
    assert words in said and len(requests) == 1


@pytest.mark.parametrize("reply", [b"", "cat", "10", "-1", b"\xff\xfe\x00", "<html>busy</html>", "{", "[0.1, 0.9]",
                                   '{"class": 3}', "[" * 5000, '{"label": true}', '{"probabilities": [1, 1]}'])
def test_nonsense_is_refused_in_one_sentence(reply, png, pauses):
    refusal(png, lambda k, pixels: reply)


def write_raw(content, slowly=0.0):
    """A reply without regard to HTTP, a byte at a time where it is slow."""
    def write(handler):
        with_pauses = [content[i : i + 1] for i in range(len(content))] if slowly else [content]
        try:
            for part in with_pauses:
                handler.wfile.write(part)
                threading.Event().wait(slowly)
        except OSError:
            pass  # the client is gone
        handler.close_connection = True

    return write


@pytest.mark.parametrize("content", [
    b"", b"hello, this is no HTTP\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\n7",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.0 two hundred\r\n\r\n"])
def test_half_a_reply_and_what_is_no_reply_are_asked_again_and_refused(content, png, pauses):
    requests = []
    said = refusal(png, lambda k, pixels: requests.append(k) or write_raw(content))
    assert len(requests) == 3 and ("broke off" in said or "no complete reply" in said)


def test_a_slow_drip_ends_with_the_time_limit(png, pauses):
    drip = write_raw(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n" + b" " * 100, slowly=0.02)
    said = refusal(png, lambda k, pixels: drip, seconds=0.3, retries=0)
    assert "gave no complete answer in 0.3 s" in said


def test_nobody_listens(png, pauses):
    with answering(lambda k, pixels: "1") as served:
        pass
    with pytest.raises(Refusal, match="cannot be reached or broke off .*refused.* [(]2 times"):
        Server(served.url, retries=1).ask([png], Classes(CLASSES), False)
