"""Suspects behind a server: what it may answer, how it may fail, on purpose too, and how it is asked."""

import email.utils
import json
import sys
import threading
import time

import numpy as np
import pytest
import requests
from answering_server import answering, label_of, serving
from commands import refused, verify
from owner_runs import CLASSES, M, names_of

from utils.answers import ask as server_module
from utils.answers.answers import Answer, Classes
from utils.answers.ask import server
from utils.data.files import write_pictures
from utils.system.outside import REPLY_LIMIT, post
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
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
        answers = server(served.url, **{"retries": 2} | settings).ask([png], Classes(CLASSES), allow_missing)
    return answers, served


def refusal(png, reply, **settings) -> str:
    with pytest.raises(Refusal) as caught:
        ask(png, reply, **settings)
    sentence = str(caught.value)
    assert sentence.startswith("--url http://127.0.0.1") and "\n" not in sentence and png.name in sentence
    return sentence


def claim_refused(owner, *flags) -> str:
    """The sentence in which a claim is refused."""
    return refused("utils.verify", "claim", owner[0], "--trust-owner", *flags)


def test_headers_rate_and_retries_are_those_of_the_flags(owner, pauses):
    with answering(lambda k, pixels: (503, "", {})) as served:
        said = claim_refused(owner, "--url", served.url, "--retries", "1", "--rate", "0.25",
                             "--header", "X-Key: a: b", "--header", "X-User: b")
    assert "status 503" in said and "(2 times)" in said and pauses == [4.0]
    assert [(h["X-Key"], h["X-User"]) for h in served.headers] == [("a: b", "b")] * 2


def test_a_password_of_the_user_is_sent_to_nobody(png, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for headers, sent in (((), None), (("Authorization: Bearer KEY",), "Bearer KEY")):
        _, served = ask(png, lambda k, pixels: "3", headers=headers)
        assert served.headers[0].get("Authorization") == sent


def test_a_password_in_the_address_of_an_authority_is_sent():
    seen = []
    with serving(lambda body, headers: seen.append(headers) or "a token") as url:
        post(url.replace("://", "://me:secret@"), b"a query", {}, 10)
    assert seen[0]["Authorization"] == "Basic bWU6c2VjcmV0"


def test_kept_answers_are_those_of_the_same_columns_and_of_the_same_headers_but_for_a_token(owner, tmp_path):
    with answering(lambda k, pixels: str(label_of(owner[1], pixels))) as served:
        claim = ("claim", owner[0], "--trust-owner", "--url", served.url, "--keep-answers", tmp_path / "kept")
        for token in "ab":
            assert verify(*claim, "--header", "X-Model: 1", "--header", f"Authorization: {token}")[0] == 0
        assert len(served.images) == M
        (tmp_path / "columns").write_text("\n".join(CLASSES[::-1]))  # kept answers are in the owner's order
        for flags in (("X-Model: 2",), ("X-Model: 1", "--columns", tmp_path / "columns")):
            said = refused("utils.verify", *claim, "--header", *flags)
            assert "or other --columns or --header: name another file" in said and len(served.images) == M


@pytest.mark.parametrize("flags, words", [
    (("--url", "ftp://x"), "--url"), (("--url", "http://a b/"), "--url"), (("--url", ""), "--url is empty"),
    (("--url", "http://[::1/"), "--url"), (("--url", "http://127.0.0.1:9/", "--header", "a b: c"), "--header"),
    (("--url", "http://127.0.0.1:99999/"), "--url"), (("--url", "http://:9/"), "no address that can be asked"),
    (("--url", "http://me:secret@127.0.0.1:9/"), "--header 'Authorization"),
    (("--predictions", "answers.csv", "--header", "a: b"), "it needs --url"),
    (("--predictions", "answers.csv", "--scale", "255"), "--mean, --std and --scale are for a --suspect"),
    (("--command", "echo {png}", "--keep-answers", "gone/kept"), "--keep-answers gone/kept: there is no folder gone"),
    (("--command", "echo {png}", "--keep-answers", "/dev/null"), "--keep-answers /dev/null: is no ordinary file"),
])
def test_what_can_never_be_sent_is_refused_before_anybody_is_asked(flags, words, owner, pauses):
    said = claim_refused(owner, *flags)
    assert words in said and "asked again" not in said and "secret" not in said and pauses == []


def test_a_list_may_name_a_server_and_a_program(owner, tmp_path):
    """It is refused before anybody is asked where one of them cannot be, and with a flag for one suspect."""
    listed, json_reply = tmp_path / "list.txt", {"Content-Type": "application/json"}
    sure = lambda k, pixels: (200, json.dumps(np.eye(10)[label_of(owner[1], pixels)].tolist()), json_reply)
    with answering(sure) as served:
        for more, flags, words in (("command echo 3", (), "--command"), ("", ("--header", "X-Key: a"), "--header")):
            listed.write_text(f"url {served.url}\n{more}\n")
            assert words in claim_refused(owner, "--suspects", listed, *flags)
        assert served.images == []
        listed.write_text(f"url {served.url}\ncommand {sys.executable} -S -c print(3) {{png}}\n")
        status, out, _ = verify("claim", owner[0], "--trust-owner", "--suspects", listed)
    assert status == 0 and f"{M} of {M} triggers" in out and "holds against 1 of 2 suspects" in out
    assert len(served.images) == M and all(headers["Content-Type"] == "image/png" for headers in served.headers)
    assert "does not allow for asking a random suspect again" in out


def test_pixels_arrive_and_the_rate_is_kept(owner, png, pauses):
    _, served = ask(png, lambda k, pixels: "3", rate=0.5)
    assert (served.images[0] == owner[1].images[0].numpy()).all() and len(pauses) == 1 and 1 < pauses[0] <= 2
    ask(png, lambda k, pixels: "3", rate=1e6)
    assert pauses[1:] == [0.0]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_is_asked_again_later_each_time(status, png, pauses):
    answers, served = ask(png, lambda k, pixels: "7" if k == 2 else (status, "busy", {}))
    assert answers == [Answer(7)] and len(served.images) == 3 and pauses[:2] == [1.0, 2.0]


@pytest.mark.parametrize("wait, least, most", [
    ("7", 7, 7), ("100000", 60, 60), (lambda: email.utils.formatdate(time.time() + 30), 20, 30), ("soon", 1, 1),
    ("nan", 1, 1), ("-5", 1, 1), ("1" * 5000, 1, 60), ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 1, 60)])
def test_retry_after_is_obeyed_up_to_a_minute_whatever_it_says(wait, least, most, png, pauses):
    after = wait() if callable(wait) else wait
    ask(png, lambda k, pixels: "7" if k else (429, "", {"Retry-After": after}))
    assert least <= pauses[0] <= most


def test_a_server_that_stays_busy_is_refused_or_its_answers_are_missing(png, pauses):
    said = refusal(png, lambda k, pixels: (503, "come  back\nlater", {}), retries=8)
    assert "status 503 'come back later'" in said and "(9 times)" in said and "--keep-answers FILE" in said
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]  # none is longer than a minute
    answers, served = ask(png, lambda k, pixels: (503, "", {}), allow_missing=True)
    assert answers == [Answer()] and len(served.images) == 3


@pytest.mark.parametrize("reply, words", [
    ((404, "no such page", {}), "status 404 'no such page', for 0000000000000000.png: correct the address"),
    (401, "pass the key or password that it asks for by --header"), (403, "by --header"), (405, "taken by POST"),
    (400, "pass a --command that sends that"), (415, "pass a --command"), (422, "pass a --command"),
    (410, "with --keep-answers FILE"),
    ((302, "", {"Location": "http://127.0.0.1:9/other"}), "redirects to 'http://127.0.0.1:9/other'"),
    (b"7" * (REPLY_LIMIT + 1), "more than 1048576 bytes"), (b"", "'' is no class"), ("[0.1, 0.9]", "2 probabilities"),
    ("<html>busy</html>", "is no class")])
def test_what_asking_again_cannot_mend_is_refused_at_once(reply, words, png):
    requests = []
    said = refusal(png, lambda k, pixels: requests.append(k) or reply)
    assert words in said and len(requests) == 1


def test_a_certificate_that_is_not_accepted_is_not_asked_for_again(png, monkeypatch):
    def fails(*arguments, **more):
        asked.append(arguments)
        raise requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate (_ssl.c:1000)")

    asked = []
    monkeypatch.setattr(requests, "post", fails)
    with pytest.raises(Refusal, match="certificate that is not accepted .*self-signed.* REQUESTS_CA_BUNDLE"):
        server("https://127.0.0.1:9/", retries=3).ask([png], Classes(CLASSES), False)
    assert len(asked) == 1


def test_why_the_first_answer_is_missing_is_said(owner, tmp_path):
    """A claim on half of the triggers may rest on a limit of the server's that its sentence names."""
    reply = lambda k, pixels: (429, "used up", {}) if k > 20 else "no class" if k == 20 else "3"
    with answering(reply) as served:
        flags = "--retries", 0, "--leave-out-missing"
        out = verify("claim", owner[0], "--trust-owner", "--url", served.url, *flags)[1]
        assert f"missing      the first: --url {served.url}, " in out and "'no class' is no class" in out
    with answering(lambda k, pixels: "3" if k else (429, "busy", {})) as served:
        (tmp_path / "list").write_text(f"url {served.url}\n")
        out = verify("claim", owner[0], "--trust-owner", "--suspects", tmp_path / "list", *flags)[1]
        assert f"missing, the first: --url {served.url} answered with status 429 'busy', for " in out


def write_raw(content, slowly=0.0):
    """A reply without regard to HTTP, a byte at a time where it is slow."""
    def write(handler):
        try:
            for part in [content[i : i + 1] for i in range(len(content))] if slowly else [content]:
                handler.wfile.write(part)
                threading.Event().wait(slowly)
        except OSError:
            pass  # the client is gone
        handler.close_connection = True

    return write


@pytest.mark.parametrize("content", [
    b"", b"hello, this is no HTTP\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\n7",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"])
def test_half_a_reply_and_what_is_no_reply_are_asked_again_and_refused(content, png):
    requests = []
    said = refusal(png, lambda k, pixels: requests.append(k) or write_raw(content))
    assert len(requests) == 3 and ("broke off" in said or "no complete reply" in said)


def test_a_slow_drip_ends_with_the_time_limit_and_nobody_may_listen(png):
    drip = write_raw(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n" + b" " * 100, slowly=0.02)
    assert "gave no complete answer in 0.3 s" in refusal(png, lambda k, pixels: drip, seconds=0.3, retries=0)
    with answering(lambda k, pixels: "1") as served:
        pass
    with pytest.raises(Refusal, match="cannot be reached or broke off .*refused.* [(]2 times"):
        server(served.url, retries=1).ask([png], Classes(CLASSES), False)


def test_images_are_asked_in_the_order_of_their_names(owner):
    """An order of the owner's would tell the suspect which trigger he sees, and where Wald's test stops."""
    with answering(lambda k, pixels: "3") as served:
        verify("claim", owner[0], "--trust-owner", "--url", served.url)
    order = np.argsort(names_of(owner[0]))
    assert np.array_equal(np.stack(served.images), owner[1].images[order].numpy())


def test_kept_answers_hold_the_probabilities(owner, tmp_path, monkeypatch):
    """Else T1p would be lost with an interruption. They are read again however many triggers and classes there are."""
    monkeypatch.setattr(server_module, "ANSWERS_LIMIT", 4000)
    p = np.random.default_rng(0).dirichlet(np.ones(10), M).tolist()
    with answering(lambda k, pixels: (200, json.dumps(p[k]), {"Content-Type": "application/json"})) as served:
        claim, found = ("claim", owner[0], "--trust-owner", "--url", served.url, "--keep-answers", tmp_path / "kept",
                        "--json", tmp_path / "c.json"), []
        for _ in range(2):
            verify(*claim)
            found.append(json.loads((tmp_path / "c.json").read_text()))
    assert len(served.images) == found[1]["kept"] == M
    assert found[0]["tests"] == found[1]["tests"] and found[0]["tests"]["T1p"]["log10_p"] is not None
