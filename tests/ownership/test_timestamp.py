"""Time-stamps against an authority that the test starts: real chains of certificates, real tokens."""

import datetime
import functools
import shutil
import time
from pathlib import Path

import pytest
from answering_server import serving
from authority import make_chain, openssl, stamping
from commands import refused, verify
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from owner_runs import M, answer, make_run, record_of

from utils.ownership import timestamp
from utils.ownership.claim import find_doubts
from utils.ownership.commitment import read_owner
from utils.ownership.timestamp import TOKEN_FILE, Stamp, check_token
from utils.verify import main as verify_main
from utils.watermark.prepared import read_prepared, round_after, round_time

pytestmark = [pytest.mark.usefixtures("quick"),
              pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")]
QUICKNET = "drand quicknet"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder of an authority's keys, and the certificates that its signatures lead to."""
    folder = tmp_path_factory.mktemp("authority") / "chain"
    return folder, str(make_chain(folder))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(folder of prepare, the digest that it printed)."""
    folder = tmp_path_factory.mktemp("prepared") / "P"
    assert verify_main(["prepare", str(folder), "-dt", "digits", "-nq", "10", "--device", "cpu"]) == 0
    return folder, read_prepared(folder).record["sha256"]


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy of the folder of prepare."""
    return shutil.copytree(prepared[0], tmp_path / "P")


def stamped(folder, url, *flags):
    return verify("timestamp", folder, "--tsa", url, *flags)


def token(folder, digest, path):
    """A token that the chain in `folder` signs now, in a file."""
    openssl("ts", "-query", "-digest", digest, "-sha256", "-cert", "-out", path.with_suffix(".tsq"))
    path.write_bytes(stamping(folder)(path.with_suffix(".tsq").read_bytes()))
    return path


def test_a_token_is_verified_by_the_certificates_and_by_no_others(chain, prepared, folder, tmp_path):
    keys, ca = chain
    asked = []
    with serving(lambda query, _: asked.append(query) or stamping(keys)(query)) as url:
        status, out, _ = stamped(folder, url, "--tsa-ca", ca)
        assert status == 0 and f"commitment {prepared[1]} existed at 20" in out
        assert bytes.fromhex(prepared[1]) in asked[0] and len(asked[0]) < 100  # the digest and nothing else
        token = (folder / TOKEN_FILE).read_bytes()
        for of, why in ((ca, "the older token is the better"), (make_chain(tmp_path / "another"), "lacks its")):
            said = stamped(folder, url, "--tsa-ca", of).err
            assert f"{TOKEN_FILE} is there, and kept" in said and why in said
        assert (folder / TOKEN_FILE).read_bytes() == token and len(asked) == 1
    stamp = check_token(token, prepared[1], ca)
    (tmp_path / "twice.pem").write_text(2 * Path(ca).read_text())
    assert check_token(token, prepared[1], str(tmp_path / "twice.pem")) == stamp
    assert abs(stamp.time - time.time()) < 60 and check_token(token, prepared[1], None).time == stamp.time
    for of in (ca, None):
        assert check_token(token, "00" * 32, of).why == "it is the token of another digest"
    assert check_token(token, prepared[1], str(make_chain(tmp_path / "foreign"))).time is None
    spoiled = bytearray(token)
    spoiled[-5] ^= 1  # in the signature
    for bad in (bytes(spoiled), b"nonsense", b"", token[:-3], token[:40], b"\x30\x84\xff\xff\xff\xff" * 9):
        assert check_token(bad, prepared[1], ca).time is None


def test_a_token_stays_good_when_the_authoritys_certificate_has_expired(chain, tmp_path):
    """The token is of a second in which the certificate was good, and is checked afterwards."""
    short, now = shutil.copytree(chain[0], tmp_path / "short"), datetime.datetime.now(datetime.timezone.utc)
    (short / "openssl.cnf").write_text((short / "openssl.cnf").read_text().replace(str(chain[0]), str(short)))
    load = lambda name: serialization.load_pem_private_key((short / name).read_bytes(), None)
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    made = x509.CertificateBuilder(name("ca"), name("tsa"), load("tsa.key").public_key(), 7,
                                   now - datetime.timedelta(1), now + datetime.timedelta(seconds=4))
    made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    certificate = made.sign(load("ca.key"), hashes.SHA256())
    (short / "tsa.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    signed = token(short, "11" * 32, tmp_path / "token.tsr")
    while datetime.datetime.now(datetime.timezone.utc) < certificate.not_valid_after_utc:
        time.sleep(0.2)
    stamp = check_token(signed, "11" * 32, str(short / "ca.pem"))
    assert stamp.time is not None, stamp.why


@pytest.mark.parametrize("reply", [500, b"<html>", b"", b"\x30" * (2 << 20)])
def test_an_authority_that_gives_no_token_is_refused(reply, folder):
    with serving(lambda query, _: reply) as url:
        status, _, err = stamped(folder, url)
    assert status == 2 and "--tsa http" in err and not (folder / TOKEN_FILE).exists()


def test_an_old_token_a_bad_address_and_a_folder_without_commitment_are_refused(chain, folder, tmp_path):
    asked = []
    always_the_first = functools.cache(lambda: stamping(chain[0])(asked[0]))
    with serving(lambda query, _: asked.append(query) or always_the_first()) as url:
        assert stamped(folder, url)[0] == 0
        (folder / TOKEN_FILE).unlink()
        assert "an old one" in stamped(folder, url).err  # the same token again: its nonce is that of the first query
    for url in ("file:///etc/passwd", "http://127.0.0.1:9"):
        assert stamped(folder, url)[0] == 2
    assert "is no folder of" in stamped(tmp_path, "http://127.0.0.1:9")[2]


def test_no_token_is_asked_for_that_would_be_too_late(folder, monkeypatch):
    known = round_time(read_prepared(folder).record)
    for before in (-3600, 59):
        monkeypatch.setattr(timestamp.time, "time", lambda before=before: known - before)
        assert "prepare again, with a larger --after" in stamped(folder, "http://127.0.0.1:9").err
    monkeypatch.setattr(timestamp.time, "time", lambda: known - 61)
    assert "ask another authority" in stamped(folder, "http://127.0.0.1:9").err  # which is asked


def test_the_rounds_of_quicknet_have_times():
    """Round 27946612 is that of 2026-04-20 00:00:00 UTC, as a client of others computes it."""
    assert round_time(record_of(QUICKNET, 27946612)) == 1776643200
    record = record_of(QUICKNET, round_after(3600))
    assert 0 <= round_time(record) - time.time() - 3600 <= 3.1
    assert round_time(record_of()) is None


def test_a_stamp_must_be_older_than_the_round():
    def doubts(name=QUICKNET, round=27946612, stamp=None, stranger=True, beacon="3c" * 32, **more):
        record = record_of(name, round, sha256="ab" * 32, beacon=beacon)
        return " ".join(find_doubts(record, stranger=stranger, beacon=beacon, stamp=stamp, **more))

    assert doubts(stamp=Stamp(1776643200.0 - 60)) == ""
    for moment in (1776643200.0 - 59, 1776643200.0, 1.9e9):
        assert "before the beacon's value was known" in doubts(stamp=Stamp(moment))
        assert "known" in doubts(stamp=Stamp(moment), image_commitment="ab" * 32)  # the other does not lift it
    assert "has not the 32 bytes of drand" in doubts(stamp=Stamp(1.0), beacon="3c" * 48)  # the signature
    assert "fails: why" in doubts(stamp=Stamp(None, "why"))
    assert "no date is known" in doubts("round 7", 0, Stamp(1.0))
    assert "no round of drand quicknet" in doubts("drand quicknet round 7", 0)
    assert "'dr\\u0430nd quicknet'" in doubts("dr\u0430nd quicknet", 0, Stamp(1.0))  # what looks like it, with escapes
    assert "nobody can know the value" in doubts(round=27946612 * 100, stranger=False)


def test_claims_with_tokens_that_hold_and_that_fail(chain, tmp_path, monkeypatch):
    """A token of an owner's own authority, of another digest or of a later date ends the claim."""
    keys, ca = chain
    run = make_run(tmp_path / "run", record=record_of(QUICKNET, round_after(3600)))
    make_chain(tmp_path / "own")
    digest, now = read_owner(run[0]).record["sha256"], time.time()
    good, own = token(keys, digest, tmp_path / "good.tsr"), token(tmp_path / "own", digest, tmp_path / "own.tsr")
    other = token(keys, "11" * 32, tmp_path / "other.tsr")
    claim, answers = ("claim", run[0], "--beacon", "3c" * 32), ("--predictions", answer(run, tmp_path, 1.0))
    status, out, _ = verify(*claim, *answers, "--tsa-ca", ca, "--image-timestamp", good)
    assert status == 1 and "nobody can know the value" in out
    monkeypatch.setattr(time, "time", lambda: now + 7200)  # the round has come
    status, out, _ = verify(*claim, *answers, "--tsa-ca", ca, "--image-timestamp", good)
    assert status == 0 and "date         time-stamped 20" in out and f"{M} of {M}" in out
    for bad in (own, other):
        for more in ((), ("--image-commitment", digest), ("--trust-owner",)):
            status, out, _ = verify(*claim, *answers, "--tsa-ca", ca, "--image-timestamp", bad, *more)
            assert status == 1 and "the --image-timestamp fails" in out
    for flags in (("--tsa-ca", ca), ("--image-timestamp", good)):
        assert "go together" in refused("utils.verify", *claim, *answers, *flags)
    said = refused("utils.verify", *claim, *answers, "--tsa-ca", ca, "--image-timestamp", tmp_path / "absent")
    assert f"there is no time-stamp {tmp_path / 'absent'}" in said
    for bad in (good, tmp_path / "absent"):
        refused("utils.verify", *claim, *answers, "--tsa-ca", bad, "--image-timestamp", good)


def test_the_time_of_a_token_is_utc_and_its_stated_accuracy_is_added(tmp_path, monkeypatch):
    """The authority says: exact to 90.500250 s; so the digest may have come that much later."""
    make_chain(tmp_path / "chain")
    with open(tmp_path / "chain" / "openssl.cnf", "a") as config:
        config.write("accuracy = secs:90, millisecs:500, microsecs:250\n")
    signed, now = token(tmp_path / "chain", "11" * 32, tmp_path / "token.tsr"), time.time()
    times = [check_token(signed, "11" * 32, str(tmp_path / "chain" / "ca.pem")).time]
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-9")  # nine hours east of Greenwich
        time.tzset()
        times.append(check_token(signed, "11" * 32, None).time)
    time.tzset()
    assert times[0] == times[1] and times[0] % 1 == pytest.approx(0.50025) and -60 < times[0] - 90.5 - now < 1
