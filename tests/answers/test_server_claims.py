"""Claims on servers: which flags reach them, what is missing, and that every refusal ends with status 2."""

import sys

import pytest
from answering_server import answering, label_of
from commands import verify
from owner_runs import M

from utils.answers import ask as server_module

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that were asked for, in seconds; none is taken."""
    taken = []
    monkeypatch.setattr(server_module.time, "sleep", taken.append)
    return taken


def claim_refused(capsys, folder, *flags) -> str:
    """The sentence in which a claim is refused."""
    status, _, err = verify(capsys, "claim", folder, "--trust-owner", *flags)
    assert status == 2 and err.strip().isprintable()
    return err


def test_headers_rate_and_retries_are_those_of_the_flags(owner, capsys, pauses):
    with answering(lambda k, pixels: (503, "", {})) as served:
        said = claim_refused(capsys, owner[0], "--url", served.url, "--retries", "1", "--rate", "0.25",
                             "--header", "X-Key: a", "--header", "X-User: b")
    assert "status 503" in said and "(2 times)" in said and pauses == [4.0]
    assert [(h["X-Key"], h["X-User"]) for h in served.headers] == [("a", "b")] * 2


def test_images_without_an_answer_are_misses_when_allowed(owner, capsys):
    folder, triggers = owner
    refuses = {0, 5, M - 1}
    with answering(lambda k, pixels: (404, "", {}) if k in refuses else str(label_of(triggers, pixels))) as served:
        status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--allow-missing", "--url", served.url)
    assert status == 0 and f"hits         {M - 3} of {M}, {M - 3} answered" in out and len(served.images) == M
    with answering(lambda k, pixels: (404, "", {})) as served:
        said = claim_refused(capsys, folder, "--allow-missing", "--url", served.url)
    assert f"answered none of the {M} triggers" in said


@pytest.mark.parametrize("flags, words", [
    (("--url", "ftp://x"), "--url"), (("--url", "http://"), "--url"), (("--url", "http://a b/"), "--url"),
    (("--url", "http://127.0.0.1:port/"), "--url"), (("--url", "http://127.0.0.1/\u00e4"), "--url"),
    (("--url", "http://[::1/"), "--url"), (("--url", "http://127.0.0.1:9/", "--header", "a b: c"), "--header"),
    (("--url", ""), "--url is empty"), (("--url", "http://127.0.0.1:99999/"), "--url"),
    (("--url", "http://:9/"), "no address that can be asked"), (("--url", "http://127.0.0.1:0/"), "no address"),
    (("--url", "http://me:secret@127.0.0.1:9/"), "--header 'Authorization"),
    (("--url", "http://127.0.0.1:9/", "--header", "Content-Length: 3"), "leave it out"),
    (("--predictions", "answers.csv", "--header", "a: b"), "it needs --url"),
])
def test_what_can_never_be_sent_is_refused_before_anybody_is_asked(flags, words, owner, capsys, pauses):
    said = claim_refused(capsys, owner[0], *flags)
    assert words in said and "asked again" not in said and "secret" not in said and pauses == []


@pytest.mark.parametrize("bad", ["command echo 3", "url http://127.0.0.1:port/"])
def test_a_list_with_somebody_who_cannot_be_asked_is_refused_before_anybody_is(bad, owner, tmp_path, capsys):
    with answering(lambda k, pixels: "1") as served:
        (tmp_path / "list.txt").write_text(f"url {served.url}\n{bad}\n")
        assert f"--{bad.split()[0]}" in claim_refused(capsys, owner[0], "--suspects", tmp_path / "list.txt")
    assert served.images == []


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
    assert status == 0 and f"{M} of {M} triggers" in out and "holds against 1 of 2 suspects" in out
    assert len(served.images) == M
    assert "a suspect again that answers at random is not corrected for" in out
