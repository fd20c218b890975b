"""A local HTTP server for downloads, which can break off."""

import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.path in self.server.leads:
            self.send_response(302)
            self.send_header("Location", self.server.leads[self.path])
            self.end_headers()
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if requested and self.server.resumes:
            start = int(requested[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start + self.server.lie))
        self.end_headers()
        end = start + self.server.breaks_after.pop(0) if self.server.breaks_after else None
        self.wfile.write(content[start:end])
        time.sleep(self.server.silence if end else 0)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Server of `files` (path → content); `breaks_after`: bytes after which the next answers end.

    `requests` collects the path and the Range of each request. Without `resumes` the server ignores
    ranges, as some servers do. `silence`: seconds without a byte before an answer breaks off.
    `lie`: bytes that each answer announces beyond its real size. `leads`: path → redirect.
    """

    lie, silence = 0, 0

    def __init__(self, files: dict[str, bytes], breaks_after: list[int], resumes: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.breaks_after, self.resumes = files, breaks_after, resumes
        self.requests: list[tuple[str, str | None]] = []
        self.leads: dict[str, str] = {}

    scheme = "http"

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def encrypt(self, certificate: Path, authority: Path | None = None) -> None:
        """Serve https alone from now on; the file `certificate` also contains its key.

        `authority`: certificate authority of the clients; without one all clients may connect.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        if authority:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"


@contextmanager
def serving(files, breaks_after=(), resumes=True) -> Iterator[Server]:
    """Run a server in the background."""
    with Server(files, list(breaks_after), resumes) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
