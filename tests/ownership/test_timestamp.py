"""Time-stamps against an authority that the test starts: a real chain of certificates, real tokens."""

import hashlib
import json
import shutil

import pytest
from authority import make_chain, serving, stamping
from commands import verify
from owner_runs import answer, make_run

from utils.ownership.timestamp_token import TOKEN_FILE, check_token, request_token
from utils.system.refusals import Refusal

pytestmark = [pytest.mark.usefixtures("quick"),
              pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")]
DIGEST, OTHER = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder of an authority's keys, and the certificates that its signatures lead to."""
    folder = tmp_path_factory.mktemp("authority") / "chain"
    return folder, str(make_chain(folder))


def test_a_token_is_verified_by_the_certificates_and_by_no_others(chain, tmp_path):
    folder, ca = chain
    with serving(stamping(folder)) as url:
        token = request_token(DIGEST, url, ca)
    path = tmp_path / TOKEN_FILE
    path.write_bytes(token)
    stamp = check_token(path, DIGEST, ca)
    assert stamp.state == "verified" and "GMT" in stamp.time
    assert check_token(path, DIGEST, None).state == "unverified"
    failed = check_token(path, OTHER, ca)
    assert failed.state == "failed" and "another digest" in failed.why
    foreign = str(make_chain(tmp_path / "foreign"))
    failed = check_token(path, DIGEST, foreign)
    assert failed.state == "failed" and "certificate verify error" in failed.why
    changed = bytearray(token)
    changed[-5] ^= 1  # in the signature
    path.write_bytes(changed)
    assert check_token(path, DIGEST, ca).state == "failed"
    path.write_bytes(b"nonsense")
    assert check_token(path, DIGEST, None).state == "failed"
    assert check_token(tmp_path / "none", DIGEST, ca).state == "none"


@pytest.mark.parametrize("reply, words", [
    (lambda query: 500, "cannot be asked: HTTP Error 500"), (lambda query: b"<html>", "is not accepted by openssl"),
    (lambda query: b"", "is not accepted by openssl"),
])
def test_an_authority_that_gives_no_token_is_refused(reply, words):
    with serving(reply) as url, pytest.raises(Refusal, match=words):
        request_token(DIGEST, url)


def test_a_token_of_another_time_or_digest_is_refused(chain):
    folder, ca = chain
    replies = []

    def recorded(query):
        replies.append(replies[0] if replies else stamping(folder)(query))
        return replies[0]

    with serving(recorded) as url:
        request_token(DIGEST, url, ca)
        with pytest.raises(Refusal, match="nonce"):
            request_token(DIGEST, url, ca)  # the same token again: its nonce is that of the first query
        with pytest.raises(Refusal, match="stamped another digest"):
            request_token(OTHER, url)


def test_addresses_that_are_none_are_refused():
    for url, words in (("file:///etc/passwd", "begins with http"), ("http://127.0.0.1:9", "cannot be asked")):
        with pytest.raises(Refusal, match=words):
            request_token(DIGEST, url)


def test_a_claim_prints_the_authoritys_time(chain, tmp_path, capsys):
    folder, ca = chain
    owner = make_run(tmp_path / "run")
    answers, claim = answer(owner, tmp_path, 0.6), ("claim", owner[0], "--trust-owner", "--predictions")
    assert "the date is the owner's own" in verify(capsys, *claim, answers)[1]
    with serving(stamping(folder)) as url:
        status, out, _ = verify(capsys, "timestamp", owner[0], "--tsa", url, "--tsa-ca", ca)
        assert status == 0 and "by an authority of the given certificates" in out
        token = (owner[0] / TOKEN_FILE).read_bytes()
        status, _, error = verify(capsys, "timestamp", owner[0], "--tsa", url)
        assert status == 2 and "the older token is the better one" in error
    assert (owner[0] / TOKEN_FILE).read_bytes() == token
    status, out, _ = verify(capsys, *claim, answers, "--tsa-ca", ca, "--json", tmp_path / "c.json")
    stamp = json.loads((tmp_path / "c.json").read_text())["timestamps"]["commitment"]
    assert status == 0 and stamp["state"] == "verified" and f"time-stamped {stamp['time']}" in out
    assert "not checked: pass --tsa-ca" in verify(capsys, *claim, answers)[1]
    (owner[0] / TOKEN_FILE).write_bytes(token[:-3])
    assert "with a time-stamp that fails" in verify(capsys, *claim, answers, "--tsa-ca", ca)[1]
    status, _, error = verify(capsys, *claim, answers, "--image-timestamp", tmp_path / "x")
    assert status == 2 and "no beacon drew the labels" in error
    status, _, error = verify(capsys, *claim, answers, "--tsa-ca", tmp_path / "nothing")
    assert status == 2 and "nothing" in error


def test_a_folder_without_a_commitment_is_refused(tmp_path, capsys):
    status, _, error = verify(capsys, "timestamp", tmp_path, "--tsa", "http://127.0.0.1:9")
    assert status == 2 and "has no commitment" in error and not list(tmp_path.iterdir())
