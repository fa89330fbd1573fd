"""What crosses between a node and the server, kept in clear: for a look, never in production."""

from __future__ import annotations

import http.client
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["Crossing", "Recorder"]


@dataclass(frozen=True)
class Crossing:
    """A request of a node, ``up``, and the server's answer to it, ``down``: what the bodies hold.

    ``path`` says what it is about, such as ``/v1/fleet/push-message``.
    """

    path: str
    up: bytes
    down: bytes


class Recorder:
    """Stands before a server, hands on what one node says and what it is answered, and keeps both.

    It reads in clear what is encrypted on either side of it. That takes the server's own private
    key, ``server.key`` in ``folder``, which nobody but the server should have.
    """

    def __init__(self, server: str, folder: Path) -> None:
        self.crossed: list[Crossing] = []
        crossed, trust = self.crossed, ssl.create_default_context(cafile=str(folder / "ca.pem"))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                up = self.rfile.read(int(self.headers["Content-Length"]))
                connection = http.client.HTTPSConnection(server, context=trust)
                connection.request("POST", self.path, up, dict(self.headers.items()))
                answer = connection.getresponse()
                down = answer.read()
                connection.close()
                crossed.append(Crossing(self.path, up, down))
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(down)))
                self.end_headers()
                self.wfile.write(down)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._proxy.socket = tls.wrap_socket(self._proxy.socket, server_side=True)
        self.address = f"127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._proxy.shutdown()
        self._proxy.server_close()
