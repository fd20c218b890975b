"""A local HTTP server for what is downloaded, which can break off."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.server.resumes:
            start = int(asked[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.breaks_after.pop(0) if self.server.breaks_after else None
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """`files`: path → content. `breaks_after`: bytes after which the next answers break off.

    `asked` collects the path and the Range of each request; with `resumes` off, ranges are
    ignored, as some servers do.
    """

    def __init__(self, files: dict[str, bytes], breaks_after: list[int], resumes: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.breaks_after, self.resumes = files, breaks_after, resumes
        self.asked = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(files, breaks_after=(), resumes=True) -> Iterator[Server]:
    """A server at work in the background."""
    with Server(files, list(breaks_after), resumes) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
