"""The settings of the console's server. Imports nothing heavy: options and parameters are made from these."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_spec_decode.core.config import setting
from vlm_spec_decode.serve.access import (
    AccessKeys,
    BindAddress,
    bind_address,
    check_exposure,
    make_key,
    read_keys,
    tls_files,
)

if TYPE_CHECKING:
    from vlm_spec_decode.serve.console.commands import ConsoleRobot

TOKEN_BYTES = 18
TOKENS_VARIABLE = "VSD_CONSOLE_TOKENS"
"""Environment variable with tokens that may command, with commas between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings:
    """Where the page is served, and who may use it.

    Without `tokens` two are made at every start: one that may command and one that may only look.
    """

    bind: str = setting(
        "127.0.0.1:8477", "HOST:PORT of the page; port 0: any free one. 0.0.0.0 lets other devices see it."
    )
    tokens: Path | None = setting(
        None,
        "File of tokens, NAME TOKEN RIGHT a line, with the right command or view; empty: made at each start.",
    )
    tls_certificate: Path | None = setting(None, "Certificate chain, PEM, for https; with its key.")
    tls_key: Path | None = setting(None, "Private key of the certificate, PEM.")


@dataclass(frozen=True, slots=True)
class ConsoleLinks:
    """Where the page is. The links hold a token each, None where a file has the tokens."""

    url: str
    command: str | None
    view: str | None

    @property
    def lines(self) -> list[str]:
        """Return what to tell the person who started the console."""
        if self.command is None:
            return [f"the page: {self.url}/ (its tokens are in your file)"]
        return [f"to command: {self.command}", f"only to look: {self.view}"]


@contextmanager
def links_file(links: ConsoleLinks) -> Iterator[Path | None]:
    """Write the links into a file that only this user may read, for the block; None if they hold no tokens.

    For a process whose output others read: a node's goes to /rosout, to log files and to the launch's log.
    """
    if links.command is None:
        yield None
        return
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if not os.access(folder, os.W_OK | os.X_OK):
        folder = Path(tempfile.gettempdir())
    # mkstemp: nobody else may read it, nor has made it before.
    made, name = tempfile.mkstemp(".links", "vsd-console-", folder)
    try:
        with os.fdopen(made, "w", encoding="utf-8") as file:
            file.write("\n".join([*links.lines, ""]))
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def shown_host(address: BindAddress) -> str:
    """Return the host for links: where the server listens on all addresses, one that others reach."""
    host = address.host
    if host in ("0.0.0.0", "::"):
        # A datagram socket that is connected sends nothing; it tells which address leads outside.
        family = socket.AF_INET6 if address.is_v6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("2001:db8::1" if address.is_v6 else "192.0.2.1", 9))
                host = str(probe.getsockname()[0])
            except OSError:
                host = socket.gethostname()
    return f"[{host}]" if ":" in host else host


@contextmanager
def serving(robots: Sequence[ConsoleRobot], settings: ConsoleSettings) -> Iterator[ConsoleLinks]:
    """Serve the page on a thread of its own during the block; yield its links. Raises ConfigError."""
    from vlm_spec_decode.serve.console.app import COMMAND, LIMITS, VIEW, Console
    from vlm_spec_decode.serve.server import HttpServer

    address = bind_address(settings.bind)
    made: dict[str, str] = {}
    keys = read_keys(settings.tokens, TOKENS_VARIABLE, (COMMAND,))
    if not keys:
        made = {right: secrets.token_urlsafe(TOKEN_BYTES) for right in (COMMAND, VIEW)}
        keys = AccessKeys(make_key(right, text, (right,)) for right, text in made.items())
    check_exposure(address, keys)
    tls = tls_files(settings.tls_certificate, settings.tls_key)
    console = Console(robots, keys)
    server: HttpServer | None = None
    try:
        server = HttpServer(console.app, address, tls, LIMITS, websockets=True)
        url = f"{server.url.partition('://')[0]}://{shown_host(address)}:{server.port}"
        links = {right: f"{url}/#token={text}" for right, text in made.items()}
        server.start()
        yield ConsoleLinks(url, links.get(COMMAND), links.get(VIEW))
    finally:
        console.close()
        if server is not None:
            server.close()
