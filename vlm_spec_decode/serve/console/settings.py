"""The settings of the console's server. Imports nothing heavy: options and parameters are made from these."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_spec_decode.core.config import setting
from vlm_spec_decode.serve.access import (
    AccessKeys,
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
    server = HttpServer(console.app, address, tls, LIMITS, websockets=True)
    links = {right: f"{server.url}/#token={text}" for right, text in made.items()}
    server.start()
    try:
        yield ConsoleLinks(server.url, links.get(COMMAND), links.get(VIEW))
    finally:
        console.close()
        server.close()
