"""The pictures of requests: data URLs, and URLs of hosts that are allowed by name.

Nothing is fetched from any other host, no redirect is followed, and what comes is bounded in bytes, pixels
and time, from the look-up of the host's name to the last byte. A picture is what its first bytes say, JPEG,
PNG or WebP, whatever its URL calls it; no decoder of another format sees it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from vlm_spec_decode.core.errors import ConfigError, ImageError
from vlm_spec_decode.core.images import JPEG_MAGIC, PNG_MAGIC, opened
from vlm_spec_decode.serve.openai_api.errors import ApiError, wrong

OTHER_FORMATS: Mapping[bytes, str] = {
    b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\0\0\1\0": "ICO", b"P6": "PPM",
    b"\0\0\0\x0cjP  ": "JPEG2000",
}  # fmt: skip
"""How pictures begin that are not taken, to say so by their name."""

FETCH_S = 5.0
"""How long a fetch may take, and how long one waits for its place before that."""

MAX_FETCHES, TRY_S = 8, 0.02
"""Pictures that are fetched at a time, those among them whose look-up hangs and nobody waits for, and how
often one tries that finds no place."""

MAX_HEAD_CHARS = 256
"""Of a data URL before its comma."""

_DATA = re.compile(r"data:(?P<kind>image/[a-z0-9.+-]+)?(?P<more>(;[A-Za-z0-9=._-]+)*),", re.ASCII)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_WHERE = "image_url.url"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLimits:
    """Bounds of a picture: its file in bytes, its size in pixels, and the hosts that it may come from."""

    max_bytes: int
    max_pixels: int
    hosts: frozenset[str] = frozenset()


def check_hosts(hosts: tuple[str, ...]) -> frozenset[str]:
    """Return the hosts, HOST or HOST:PORT. Raises ConfigError."""
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"--allow-url-host {host!r}: HOST or HOST:PORT is wanted")
    return frozenset(host.lower() for host in hosts)


def is_remote(url: str) -> bool:
    """Whether the picture has to be fetched."""
    return url.lower().startswith(("http://", "https://"))


def read_picture(url: str, limits: PictureLimits, fetched: bytes | None = None) -> bytes:
    """Return the file in a data URL, or `fetched`, which another URL has brought. Raises ApiError."""
    if url.startswith("data:"):
        data = _in_url(url, limits)
    elif fetched is not None:
        data = fetched
    else:
        raise wrong(_WHERE, "a data URL, or an http URL of an allowed host, is wanted", "invalid_image_url")
    _check(data, limits)
    return data


def _in_url(url: str, limits: PictureLimits) -> bytes:
    match = _DATA.match(url, 0, MAX_HEAD_CHARS)  # not the picture: a long head would be tried in every way
    if not match:
        raise wrong(_WHERE, "no data URL of a picture (data:image/jpeg;base64,…)", "invalid_image_url")
    text = url[match.end() :]
    if len(text) > 4 * limits.max_bytes:
        raise _too_large(limits)
    if not (match["more"] or "").endswith(";base64"):
        return unquote_to_bytes(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(_WHERE, f"the data URL is no base64: {error}", "invalid_image_url") from error


async def fetch_picture(url: str, limits: PictureLimits) -> bytes:
    """Fetch from an allowed host, once, without redirects, cookies, proxies or credentials.

    To be read by `read_picture`. A cancel ends it at once. Raises ApiError.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise wrong(_WHERE, f"no URL: {error}", "invalid_image_url") from error
    name = f"[{host}]" if ":" in host else host
    allowed = {name} if port is None else {f"{name}:{port}"}
    if not (allowed & limits.hosts) or parts.username is not None or not host:
        raise wrong(
            _WHERE,
            "this server fetches no URL of that host; send the picture as a data URL "
            "(or start the server with --allow-url-host)",
            "url_not_allowed",
        )
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    if not target.isascii() or not target.isprintable() or " " in target:
        raise wrong(_WHERE, "no URL: its path is not ASCII", "invalid_image_url")
    kind = http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
    return await _Fetch(kind(host, port, timeout=FETCH_S), name, target, limits).result()


_FETCHES = threading.BoundedSemaphore(MAX_FETCHES)


class _Fetch:
    """One picture that is fetched in a thread of its own, for nothing bounds the look-up of a name.

    Who waits is freed after `FETCH_S`, or by a cancel; the thread then ends at its next step.
    """

    def __init__(
        self, connection: http.client.HTTPConnection, name: str, target: str, limits: PictureLimits
    ) -> None:
        self._connection = connection
        self._name = name
        self._target = target
        self._limits = limits
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._found: asyncio.Future[bytes | Exception] = self._loop.create_future()

    async def result(self) -> bytes:
        """Return the picture. Raises ApiError."""
        until_s = time.monotonic() + FETCH_S
        while not _FETCHES.acquire(blocking=False):
            if time.monotonic() > until_s:
                raise self._failed(f"{MAX_FETCHES} pictures are being fetched")
            await asyncio.sleep(TRY_S)
        threading.Thread(target=self._run, name="vsd-fetch", daemon=True).start()
        try:
            found = await asyncio.wait_for(self._found, FETCH_S)
        except asyncio.TimeoutError:  # on Python 3.10 no TimeoutError
            raise self._failed(f"more than {FETCH_S:g} s") from None
        finally:
            self._leave()
        if isinstance(found, bytes):
            return found
        if isinstance(found, ApiError):
            raise found
        raise self._failed(str(found)) from found

    def _leave(self) -> None:
        """Let the thread end, if it has not."""
        self._is_over = True
        with suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)  # who reads goes on at once

    def _run(self) -> None:
        try:
            self._put(self._read())
        except Exception as error:  # noqa: BLE001 - raised again by `result`
            self._put(error)
        finally:
            self._connection.close()
            _FETCHES.release()

    def _put(self, found: bytes | Exception) -> None:
        def put() -> None:
            if not self._found.done():
                self._found.set_result(found)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(put)

    def _read(self) -> bytes:
        self._connection.connect()
        if self._is_over:
            return b""  # nobody waits any more
        headers = {"Accept": "image/jpeg, image/png, image/webp", "Connection": "close"}
        self._connection.request("GET", self._target, headers=headers)
        response, found = self._connection.getresponse(), bytearray()
        if response.status != 200:
            raise self._failed(f"it answers with {response.status}")
        while part := response.read1(64 * 1024):
            found += part
            if len(found) > self._limits.max_bytes:
                raise _too_large(self._limits)
        return bytes(found)

    def _failed(self, why: str) -> ApiError:
        return wrong(_WHERE, f"{self._name} cannot be read: {why}", "image_fetch_failed")


def _check(data: bytes, limits: PictureLimits) -> None:
    """Refuse other formats, and too many bytes or pixels, before anything is decoded."""
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if not is_webp and not data.startswith((JPEG_MAGIC, PNG_MAGIC)):
        name = next((name for start, name in OTHER_FORMATS.items() if data.startswith(start)), "")
        text = f"{f'a {name} picture' if name else 'no picture'}; JPEG, PNG and WebP are taken"
        raise wrong(_WHERE, text, "invalid_image_format" if name else "invalid_image")
    try:
        with opened(data) as picture:
            width, height = picture.size
    except ImageError as error:
        raise wrong(_WHERE, str(error), "invalid_image") from error
    if width * height > limits.max_pixels:
        raise ApiError(
            413,
            f"a picture of {width} x {height} pixels; {limits.max_pixels:,} are allowed",
            code="image_too_large",
            param=_WHERE,
        )


def _too_large(limits: PictureLimits) -> ApiError:
    text = f"a picture of more than {limits.max_bytes:,} bytes"
    return ApiError(413, text, code="image_too_large", param=_WHERE)
