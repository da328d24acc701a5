"""Health, readiness and metrics over HTTP, on the loopback interface only.

`/healthz` reports whether the serving loop runs, `/readyz` whether new answers are accepted, `/metrics` has
the figures for Prometheus. Accepts GET only, reads no body, and returns no content from robots.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from vlm_spec_decode.cloud.config import HTTP_AUTO, http_address
from vlm_spec_decode.core.errors import CloudError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

PATIENCE_S = 5.0
"""The connection of a client that sends nothing for this time is closed."""

Check = Callable[[], str]
"""Returns what is wrong in a few words, "" if nothing is."""


class HealthServer:
    """Answers on a thread of its own from `start` to `close`."""

    def __init__(self, where: str, registry: CollectorRegistry, healthy: Check, ready: Check) -> None:
        self._registry = registry
        self._checks: Mapping[str, Check] = {"/healthz": healthy, "/readyz": ready}
        host, port = http_address(where)
        self._server = _listen(host, port, may_move=where == HTTP_AUTO)
        self._server.set_app(self._answer)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="vsd-http", daemon=True)

    def start(self) -> None:
        """Start to answer requests."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=10)
        self._server.server_close()

    def _answer(self, environ: Mapping[str, Any], respond: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if environ.get("REQUEST_METHOD") != "GET":
            return _respond(respond, "405 Method Not Allowed", "GET only\n")
        if path == "/metrics":
            respond("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            return [generate_latest(self._registry)]
        if check := self._checks.get(str(path)):
            problem = check()
            return _respond(
                respond, "503 Service Unavailable" if problem else "200 OK", f"{problem or 'ok'}\n"
            )
        return _respond(respond, "404 Not Found", "/healthz, /readyz or /metrics\n")


def _respond(respond: StartResponse, status: str, text: str) -> Iterable[bytes]:
    respond(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode()]


class _QuietHandler(WSGIRequestHandler):
    """A handler that writes no log and closes slow connections."""

    timeout = PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: scrapers send requests all the time."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    address_family = socket.AF_INET

    def server_bind(self) -> None:
        """Bind without the look-up of our host name that the base class makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


def _listen(host: str, port: int, *, may_move: bool) -> WSGIServer:
    """Bind the port; if it is taken, with `may_move` any free one, else raise CloudError."""
    kind = _Server6 if ":" in host else _Server
    try:
        return kind((host, port), _QuietHandler)
    except OSError as error:
        if may_move:
            return kind((host, 0), _QuietHandler)
        raise CloudError(f"cannot listen on http://{host}:{port}: {error.strerror}") from error
