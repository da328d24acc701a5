"""Who may use what is served over HTTP: keys, the loopback rule, TLS files, and limits of one server.

Shared by everything in `serve`. Imports no HTTP library: `serve.guard` applies what is decided here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.transport.address import is_loopback_host

MIN_KEY_CHARACTERS = 16
"""Shorter keys can be guessed: 16 characters of base64 are 96 bits."""

_BIND = re.compile(r"(?P<host>\[[^\[\]\s/]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_KEY = re.compile(r"[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key that is known: its name, for the log, and what it may do. The key itself is not kept."""

    name: str
    digest: bytes
    rights: frozenset[str] = frozenset()


class AccessKeys:
    """The keys of one server. Without any, everybody who reaches the address may use it."""

    def __init__(self, keys: Iterable[AccessKey] = ()) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._keys)

    def find(self, presented: str) -> AccessKey | None:
        """Return the key with this text, None if there is none.

        Every key is compared in full, by its hash, so the time says neither which one nor how much of it
        was right.
        """
        digest, found = _digest(presented), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def make_key(name: str, text: str, rights: Iterable[str] = (), where: str = "") -> AccessKey:
    """Return a key. Raises ConfigError for a text that is too short or not printable ASCII.

    The error says `where`: in a line whose words are the wrong way round, the name is the secret.
    """
    if len(text) < MIN_KEY_CHARACTERS or not _KEY.fullmatch(text):
        raise ConfigError(
            f"key {where or name}: {MIN_KEY_CHARACTERS} printable ASCII characters or more are wanted, "
            "such as `openssl rand -base64 24` writes"
        )
    return AccessKey(name, _digest(text), frozenset(rights))


def read_keys(file: Path | None = None, variable: str = "", rights: Iterable[str] = ()) -> AccessKeys:
    """Return the keys in a file and in an environment variable; both may be missing.

    The file has a key a line, `KEY`, `NAME KEY` or `NAME KEY RIGHT,RIGHT`; `#` begins a comment. Only its
    owner may read it. The variable holds keys with commas between, which have `rights`. Raises ConfigError.
    """
    keys = [] if file is None else _keys_in(file)
    texts = os.environ.get(variable, "").split(",") if variable else []
    given = [text.strip() for text in texts if text.strip()]
    keys += [make_key(f"{variable}.{number}", text, rights) for number, text in enumerate(given, start=1)]
    return AccessKeys(keys)


def _keys_in(file: Path) -> list[AccessKey]:
    try:
        mode = file.stat().st_mode
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: no file of keys that can be read: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{file}: others than its owner may read it; chmod 600 {file}")
    keys = []
    for number, line in enumerate(lines, start=1):
        # A comment begins with a word: a key may hold a #, and must not be cut there.
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        name, text, *rights = words if len(words) > 1 else (f"line{number}", *words)
        if len(rights) > 1 or not _NAME.fullmatch(name):
            raise ConfigError(f"{file}:{number}: KEY, NAME KEY or NAME KEY RIGHT,RIGHT is wanted")
        keys.append(make_key(name, text, rights[0].split(",") if rights else (), f"at {file}:{number}"))
    if not keys:
        raise ConfigError(f"{file}: there is no key in it")
    return keys


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class BindAddress:
    """Host, without brackets, and port to listen on; port 0: any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback_host(self.host)

    @property
    def is_v6(self) -> bool:
        """Whether it is an IPv6 address."""
        return ":" in self.host


def bind_address(text: str) -> BindAddress:
    """Return the address in `HOST:PORT`, an IPv6 host in brackets. Raises ConfigError."""
    match = _BIND.fullmatch(text)
    if not match or int(match["port"]) > 65535:
        raise ConfigError(f"{text!r} is no address of the form HOST:PORT, an IPv6 host in brackets")
    return BindAddress(match["host"].strip("[]"), int(match["port"]))


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate chain and its private key, both PEM."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return the server's TLS settings, TLS 1.2 at least. Raises ConfigError."""
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            found.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self.certificate} and {self.key} are no TLS certificate: {error}") from error
        return found


def tls_files(certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """Return the files if both are named, None if neither is. Raises ConfigError."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS takes a certificate and its key: name both or neither")
    return TlsFiles(certificate, key)


def check_exposure(address: BindAddress, keys: AccessKeys) -> None:
    """Refuse to listen beyond loopback for everybody. Raises ConfigError."""
    if not address.is_loopback and not keys:
        raise ConfigError(
            f"{address.host}: beyond loopback only with a key (a file of keys, or the environment variable)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one server gives its clients.

    `body_bytes` is the largest body, `body_s` how long one may take to arrive, `header_s` how long a
    connection may take to send a request's head or for its TLS handshake, `write_s` how long a client may
    leave a reply unread, `connections` how many may be open at a time.
    """

    body_bytes: int = 16 * 1024 * 1024
    body_s: float = 10.0
    header_s: float = 5.0
    write_s: float = 10.0
    connections: int = 512


class RateLimit:
    """A token bucket: `rate_per_s` in the long run, `burst` at once. For one thread."""

    def __init__(self, rate_per_s: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s, self._burst, self._now = rate_per_s, burst, now
        self._left, self._at_s = burst, now()

    def take(self) -> float:
        """Take one; return 0, or the seconds after which there will be one."""
        now_s = self._now()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        if self._left < 1:
            return (1 - self._left) / self._rate_per_s
        self._left -= 1
        return 0.0
