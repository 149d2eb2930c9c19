"""Suspects that fail in odd ways or on purpose: a sentence in print, no traceback, nothing that steers a terminal."""

import pytest
from answering_server import answering
from commands import verify
from onnx import helper
from onnx_models import FLOAT

from utils.answers import ask as server_module

pytestmark = pytest.mark.usefixtures("quick")
LATE = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that were asked for, in seconds; none is taken."""
    taken = []
    monkeypatch.setattr(server_module.time, "sleep", taken.append)
    return taken


def claim(capsys, owner, content, *flags):
    """(stderr, number of requests) of a claim on a server that writes this, whatever it is asked; it is refused."""
    with answering(lambda k, pixels: lambda handler: handler.wfile.write(content)) as served:
        claim = ("claim", owner[0], "--trust-owner", "--url", served.url, "--retries", "1")
        status, _, err = verify(capsys, *claim, *flags)
    assert status == 2
    return err, len(served.images)


@pytest.mark.parametrize("status, requests", [(b"503 Busy", 2), (b"404 Gone", 1)])
@pytest.mark.parametrize("body", [b"zz\r\n", b"50\r\nab", b""])
def test_a_failure_whose_text_breaks_off_is_still_that_failure(status, requests, body, owner, capsys):
    content = b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    err, asked = claim(capsys, owner, content)
    assert f"status {status[:3].decode()}" in err and asked == requests
    assert "answered none of the" in claim(capsys, owner, content, "--allow-missing")[0]


@pytest.mark.parametrize("after", [LATE, "Fri, 31 Dec 9999 23:59:59 -0000", "1" * 5000, "1e400", "\xff", ",", "1 1 1"])
def test_no_date_of_a_server_breaks_a_claim_or_holds_it_for_more_than_a_minute(after, owner, capsys, pauses):
    content = f"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: {after}\r\n\r\n".encode("latin-1")
    err, asked = claim(capsys, owner, content)
    assert "status 503" in err and asked == 2 and pauses[0] <= 60


@pytest.mark.parametrize("content", [
    b"\x1b[31mhello\r\n\r\n", b"HTTP/1.1 \x1b[31m OK\r\n\r\n", b"HTTP/\x1b[31m 200 OK\r\n\r\n",
    b"HTTP/1.1 404 \x1b[31m\r\nContent-Length: 5\r\n\r\n\x1b[31m", b"HTTP/1.1 200 OK\r\n\r\n\x1b[31mcat",
    b"HTTP/1.1 302 Found\r\nLocation: http://x/\x1b[31m\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n[\"\x1b[31m\"]"])
def test_what_a_server_writes_does_not_reach_the_terminal_raw(content, owner, capsys):
    assert claim(capsys, owner, content)[0].strip().isprintable()


@pytest.mark.parametrize("domain", ["", "\x1b[31mmine"])
def test_what_is_in_a_model_does_not_reach_the_terminal_raw(domain, owner, tmp_path, capsys):
    images = helper.make_tensor_value_info("images", FLOAT, ["batch", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", FLOAT, None)
    node = helper.make_node("\x1b[31mEvil", ["images"], ["logits"], domain=domain)
    model = helper.make_model(helper.make_graph([node], "evil", [images], [logits]), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("\x1b[31mmine", 1)])
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    status, _, err = verify(capsys, "claim", owner[0], "--trust-owner", "--suspect", tmp_path / "evil.onnx")
    assert status == 2 and err.strip().isprintable() and "no ONNX model" in err
