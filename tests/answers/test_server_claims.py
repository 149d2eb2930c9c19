"""Claims on servers: which flags reach them, what is missing, and that every refusal ends with status 2."""

import sys
import threading

import pytest
from answering_server import answering, label_of
from commands import verify
from owner_runs import M, answer

from utils.answers import server as server_module
from utils.answers.server import REPLY_LIMIT
from utils.ownership.claim_log import LOG_FILE

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that were asked for, in seconds; none is taken."""
    taken = []
    monkeypatch.setattr(server_module.time, "sleep", taken.append)
    return taken


def claim_refused(capsys, folder, *flags) -> str:
    """The sentence in which a claim is refused; nothing is left of answers that were not given."""
    status, _, err = verify(capsys, "claim", folder, *flags)
    assert status == 2 and err.strip().isprintable() and not list(folder.glob(".half_asked*"))
    return err


def test_headers_rate_and_retries_are_those_of_the_flags(owner, capsys, pauses):
    with answering(lambda k, pixels: (503, "", {})) as served:
        said = claim_refused(capsys, owner[0], "--url", served.url, "--retries", "1", "--rate", "0.25",
                             "--header", "X-Key: a", "--header", "X-User: b")
    assert "status 503" in said and "(2 times)" in said and pauses == [4.0]
    assert [(h["X-Key"], h["X-User"]) for h in served.headers] == [("a", "b")] * 2


def test_the_time_limit_is_that_of_the_flag(owner, capsys):
    over = threading.Event()
    with answering(lambda k, pixels: lambda handler: over.wait(30)) as served:
        try:
            said = claim_refused(capsys, owner[0], "--url", served.url, "--retries", "0", "--timeout", "0.2")
        finally:
            over.set()
    assert "gave no complete answer in 0.2 s" in said


def test_images_without_an_answer_are_misses_when_allowed(owner, capsys):
    folder, triggers = owner
    refuses = {0, 5, M - 1}
    with answering(lambda k, pixels: (404, "", {}) if k in refuses else str(label_of(triggers, pixels))) as served:
        status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--allow-missing", "--url", served.url)
    assert status == 0 and f"hits         {M - 3} of {M}, {M - 3} answered" in out and len(served.images) == M
    assert not list(folder.glob(".half_asked*"))
    with answering(lambda k, pixels: (404, "", {})) as served:
        said = claim_refused(capsys, folder, "--allow-missing", "--url", served.url)
    assert f"answered none of the {M} triggers" in said


def test_what_cannot_be_read_is_no_missing_answer(owner, capsys):
    with answering(lambda k, pixels: "mouse") as served:
        assert "'mouse' is no class" in claim_refused(capsys, owner[0], "--allow-missing", "--url", served.url)


@pytest.mark.parametrize("reply, words", [
    ((404, "", {}), "status 404"), ((429, "", {"Retry-After": "9"}), "status 429"),
    ((302, "", {"Location": "/other"}), "redirects to"), (b"\xff\xfe\x00", "no text in UTF-8"), ("mouse", "no class"),
    ("{}", "is none of"), (b"7" * (REPLY_LIMIT + 1), "more than"),
    (lambda handler: handler.wfile.write(b"no HTTP at all\r\n\r\n"), "no complete reply"),
    (lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n7"), "no complete reply"),
    (lambda handler: None, "broke off"),
])
def test_every_failure_ends_a_claim_in_one_sentence_and_status_2(reply, words, owner, capsys):
    with answering(lambda k, pixels: reply) as served:
        assert words in claim_refused(capsys, owner[0], "--url", served.url, "--retries", "1")


def test_a_server_that_is_not_there_ends_a_claim_with_status_2(owner, capsys):
    with answering(lambda k, pixels: "1") as served:
        pass
    said = claim_refused(capsys, owner[0], "--url", served.url, "--retries", "2")
    assert "cannot be reached" in said and "(3 times)" in said


@pytest.mark.parametrize("flags, words", [
    (("--url", "ftp://x"), "--url"), (("--url", "http://"), "--url"), (("--url", "http://a b/"), "--url"),
    (("--url", "http://127.0.0.1:port/"), "--url"), (("--url", "http://127.0.0.1/\u00e4"), "--url"),
    (("--url", "http://[::1/"), "--url"), (("--url", "http://127.0.0.1:9/", "--header", "a b: c"), "--header"),
    (("--url", ""), "--url is empty"), (("--url", "http://127.0.0.1:99999/"), "--url"),
    (("--url", "http://:9/"), "names no host"),
    (("--url", "http://a..b/"), "is no host"), (("--url", "http://a%20b/"), "is no host"),
    (("--url", "http://me:secret@127.0.0.1:9/"), "--header 'Authorization"),
    (("--url", "http://127.0.0.1:9/", "--header", "Content-Length: 3"), "leave it out"),
    (("--predictions", "answers.csv", "--header", "a: b"), "it needs --url"),
])
def test_what_can_never_be_sent_is_refused_before_anybody_is_asked_or_logged(flags, words, owner, tmp_path, capsys,
                                                                             pauses):
    answers = answer(owner, tmp_path, 0.5)
    assert verify(capsys, "claim", owner[0], "--predictions", answers)[0] in (0, 1)  # so that there is a log
    log = (owner[0] / LOG_FILE).read_text()
    said = claim_refused(capsys, owner[0], *flags)
    assert words in said and "asked again" not in said and "secret" not in said and pauses == []
    assert (owner[0] / LOG_FILE).read_text() == log


@pytest.mark.parametrize("listed", [False, True])
def test_who_was_shown_triggers_is_logged_even_if_he_fails(listed, owner, tmp_path, capsys):
    with answering(lambda k, pixels: (404, "", {})) as served:
        (tmp_path / "list.txt").write_text(f"url {served.url}\n")
        flags = ("--suspects", tmp_path / "list.txt") if listed else ("--url", served.url)
        claim_refused(capsys, owner[0], *flags)
    assert (owner[0] / LOG_FILE).read_text().count(served.url) == len(served.images) == 1


def test_of_a_list_only_who_was_asked_is_logged(owner, tmp_path, capsys):
    answers = answer(owner, tmp_path, 0.5)
    with answering(lambda k, pixels: (404, "", {})) as served:
        (tmp_path / "list.txt").write_text(f"predictions {answers}\nurl {served.url}\nurl {served.url}/second\n")
        claim_refused(capsys, owner[0], "--suspects", tmp_path / "list.txt")
    log = (owner[0] / LOG_FILE).read_text()
    assert log.count(f"{served.url}\"") == 1 and "second" not in log and str(answers) not in log


@pytest.mark.parametrize("bad", ["command echo 3", "url http://127.0.0.1:port/"])
def test_a_list_with_somebody_who_cannot_be_asked_is_refused_before_anybody_is(bad, owner, tmp_path, capsys):
    with answering(lambda k, pixels: "1") as served:
        (tmp_path / "list.txt").write_text(f"url {served.url}\n{bad}\n")
        assert f"--{bad.split()[0]}" in claim_refused(capsys, owner[0], "--suspects", tmp_path / "list.txt")
    log = owner[0] / LOG_FILE
    assert served.images == [] and (not log.exists() or served.url not in log.read_text())


@pytest.mark.parametrize("flags", [("--header", "X-Key: a"), ("--sequential",)])
def test_flags_for_one_suspect_are_refused_for_a_list(flags, owner, tmp_path, capsys):
    with answering(lambda k, pixels: "1") as served:
        (tmp_path / "list.txt").write_text(f"url {served.url}\n")
        assert flags[0] in claim_refused(capsys, owner[0], "--suspects", tmp_path / "list.txt", *flags)
    assert served.images == []


def test_a_list_may_name_a_server_and_a_program(owner, tmp_path, capsys):
    folder, triggers = owner
    with answering(lambda k, pixels: str(label_of(triggers, pixels))) as served:
        (tmp_path / "list.txt").write_text(f"url {served.url}\ncommand {sys.executable} -S -c print(3) {{png}}\n")
        status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--suspects", tmp_path / "list.txt")
    assert status == 0 and f"{M}/{M}" in out and "holds against 1 of 2 suspects" in out and len(served.images) == M
