"""Real HTTP servers on this machine, for the length of a `with`."""

import contextlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
from PIL import Image


@contextlib.contextmanager
def serving(reply):
    """The address of a server that answers each POST with `reply(body, headers)`: text, bytes, a status,
    (status, body, headers), or a function that gets the request's handler and writes itself."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = reply(body, dict(self.headers))
            if callable(answer):
                answer(self)
                return
            if isinstance(answer, int):
                answer = (answer, "", {})
            status, content, headers = answer if isinstance(answer, tuple) else (200, answer, {})
            content = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            for name, value in ({"Content-Length": len(content)} | headers).items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def answering(reply):
    """A server of images: `reply(k, pixels (3, S, S))` answers request k; keeps `images`, `headers` and its `url`."""
    lock, served = threading.Lock(), SimpleNamespace(images=[], headers=[])

    def answer(png, headers):
        pixels = np.asarray(Image.open(io.BytesIO(png))).transpose(2, 0, 1)
        with lock:
            k = len(served.images)
            served.images.append(pixels)
            served.headers.append(headers)
        return reply(k, pixels)

    with serving(answer) as address:
        served.url = f"{address}/classify"
        yield served


def label_of(triggers, pixels) -> int:
    """The assigned label of the trigger with these pixels."""
    (i,) = (triggers.images.numpy() == pixels).all((1, 2, 3)).nonzero()[0]
    return int(triggers.labels[i])
