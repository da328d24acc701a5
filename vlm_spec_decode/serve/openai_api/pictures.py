"""The pictures of requests: data URLs, and URLs of hosts that are allowed by name.

Nothing is fetched from any other host, no redirect is followed, and what comes is bounded in bytes, pixels
and time. A picture is what its bytes say, JPEG, PNG or WebP, whatever its URL calls it.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import re
import ssl
import time
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from vlm_spec_decode.core.errors import ConfigError, ImageError
from vlm_spec_decode.core.images import opened
from vlm_spec_decode.serve.openai_api.errors import ApiError, wrong

FORMATS = frozenset({"JPEG", "PNG", "WEBP", "MPO"})
"""What Pillow calls the formats that are taken; a phone's JPEG may hold several pictures."""

FETCH_S = 5.0
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


def read_picture(url: str, limits: PictureLimits) -> bytes:
    """Return the file behind a URL. Blocks while it is fetched. Raises ApiError."""
    if url.startswith("data:"):
        data = _in_url(url, limits)
    elif url.lower().startswith(("http://", "https://")):
        data = _fetched(url, limits)
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


def _fetched(url: str, limits: PictureLimits) -> bytes:
    """Fetch from an allowed host, once, without redirects, cookies, proxies or credentials."""
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
    connection = kind(host, port, timeout=FETCH_S)
    try:
        connection.request("GET", target, headers={"Accept": "image/jpeg, image/png, image/webp"})
        response = connection.getresponse()
        if response.status != 200:
            raise wrong(_WHERE, f"{name} answers with {response.status}", "image_fetch_failed")
        return _body(response, limits)
    except (OSError, http.client.HTTPException, ssl.SSLError) as error:
        raise wrong(_WHERE, f"{name} cannot be read: {error}", "image_fetch_failed") from error
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, limits: PictureLimits) -> bytes:
    """Return the body, which may be slow as a whole only for so long."""
    until_s, found = time.monotonic() + FETCH_S, bytearray()
    while part := response.read1(64 * 1024):
        found += part
        if len(found) > limits.max_bytes:
            raise _too_large(limits)
        if time.monotonic() > until_s:
            raise wrong(_WHERE, f"a picture that takes more than {FETCH_S:g} s", "image_fetch_failed")
    return bytes(found)


def _check(data: bytes, limits: PictureLimits) -> None:
    """Refuse other formats, and too many bytes or pixels, before anything is decoded."""
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    try:
        with opened(data) as picture:
            kind, (width, height) = picture.format, picture.size
    except ImageError as error:
        raise wrong(_WHERE, str(error), "invalid_image") from error
    if kind not in FORMATS:
        raise wrong(_WHERE, f"a {kind} picture; JPEG, PNG and WebP are taken", "invalid_image_format")
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
