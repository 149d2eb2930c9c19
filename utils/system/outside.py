"""Programs and servers outside this process: what they say is bounded in bytes and in time."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import threading
from concurrent import futures
from urllib.parse import urljoin

import requests
from requests.utils import get_auth_from_url
from urllib3.exceptions import HTTPError

from utils.system.refusals import Refusal

LIBC = ctypes.CDLL(None)
REPLY_LIMIT = 1 << 20  # bytes
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which asking again may help


def _die_with(parent: int) -> None:
    """In a child: the kernel ends it when its parent ends, however that is (Linux)."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def run_bounded(command: list, seconds: float, limit: int, given: bytes = b"", cwd=None) -> tuple[int, bytes, bytes]:
    """(exit status, stdout, the last 4 kB of stderr) of a program without a shell, which gets `given` on stdin.

    The program and whatever it started in its session are ended in the end. Raises subprocess.TimeoutExpired after
    `seconds`, Refusal where it prints more than `limit` bytes, OSError or ValueError where it cannot be started.
    """
    process = subprocess.Popen(command, stdin=subprocess.PIPE if given else subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, cwd=cwd, start_new_session=True,
                               preexec_fn=functools.partial(_die_with, os.getpid()))
    said, end = {"out": bytearray(), "err": bytearray()}, lambda: os.killpg(process.pid, signal.SIGKILL)

    def feed():
        with contextlib.suppress(OSError), process.stdin:
            process.stdin.write(given)

    def read(name, pipe):
        with contextlib.suppress(ValueError, OSError):
            while part := pipe.read1(1 << 16):
                said[name] += part
                if name == "err":
                    del said[name][:-4096]
                elif len(said[name]) > limit:
                    end()
                    break

    threads = [threading.Thread(target=read, args=pair, daemon=True)
               for pair in (("out", process.stdout), ("err", process.stderr))]
    threads += [threading.Thread(target=feed, daemon=True)] if given else []
    for thread in threads:
        thread.start()
    try:
        process.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            end()
        process.wait()
        for thread in threads[:2]:
            thread.join(2)  # longer only where a program of another session holds the pipe
    if len(said["out"]) > limit:
        raise Refusal(f"{command[0]} printed more than {limit} bytes, the most that is read of its answers")
    return process.returncode, bytes(said["out"]), bytes(said["err"])


class NoReply(Exception):
    """Why a POST got no reply that can be read; `passing` says whether asking again may help, `later` when; `status` is
    the reply's, "certificate" where the server's is not accepted, "slow", or "program" for one that fails.
    """

    def __init__(self, text: str, passing: bool, later: str | None = None, status: int | str | None = None):
        super().__init__(text)
        self.passing, self.later, self.status = passing, later, status


def post(url: str, content: bytes, headers: dict, seconds: float) -> tuple[bytes, str]:
    """(body, content type) of the reply to a POST; NoReply otherwise, at the latest after `seconds`, all in all.

    No redirect is followed, since a POST would become a GET, and of a body at most `REPLY_LIMIT` bytes are read.
    """
    reply = futures.Future()

    def run():  # in a thread, since a server may send a byte now and then
        try:
            reply.set_result(_post(url, content, headers, seconds))
        except Exception as error:
            reply.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return reply.result(seconds)
    except NoReply:
        raise
    except (futures.TimeoutError, requests.Timeout, TimeoutError):
        raise NoReply(f"gave no complete answer in {seconds:g} s", True, status="slow") from None
    except OSError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise NoReply(f"has a certificate that is not accepted ({short(error)})", False, None,
                          "certificate") from error
        raise NoReply(f"cannot be reached or broke off ({short(error)})", True) from error
    except Exception as error:  # a server may send what is no HTTP, or half of it
        raise NoReply(f"sent no complete reply ({type(error).__name__}: {short(error)})", True) from error


def _post(url, content, headers, seconds) -> tuple[bytes, str]:
    identity = {"Accept-Encoding": "identity"}  # a few compressed bytes could be a large body
    # else the password that ~/.netrc has for the host would be sent, in place of the caller's own header
    user, password = get_auth_from_url(url)
    auth = (user, password) if user or password else lambda request: request
    with requests.post(url, data=content, headers=identity | headers, timeout=seconds, stream=True,
                       allow_redirects=False, auth=auth) as response:
        if 300 <= response.status_code < 400:
            there = urljoin(url, response.headers.get("Location", ""))[:200]
            raise NoReply(f"redirects to {there!r} (pass that one)", False)
        body, lacking = b"", 0
        try:
            body = response.raw.read(REPLY_LIMIT + 1, decode_content=False)
            lacking = response.raw.length_remaining
        except (HTTPError, OSError, ValueError):
            if response.ok:  # else the status is the answer all the same
                raise
        if not response.ok:
            said = " ".join(body[:120].decode(errors="replace").split())
            raise NoReply(f"answered with status {response.status_code} {said!r}", response.status_code in PASSING,
                          response.headers.get("Retry-After"), response.status_code)
        if len(body) > REPLY_LIMIT:
            raise NoReply(f"sent a reply of more than {REPLY_LIMIT} bytes", False)
        if lacking:
            raise NoReply(f"sent no complete reply ({lacking} bytes are lacking)", True)
        return body, response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def short(error) -> str:
    return " ".join(str(error).split())[-160:]
