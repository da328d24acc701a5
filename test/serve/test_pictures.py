"""Pictures of requests: what is taken, what is never fetched, and what a fetch may bring."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from PIL import Image as PilImage

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.serve.openai_api import pictures
from vlm_spec_decode.serve.openai_api.errors import ApiError
from vlm_spec_decode.serve.openai_api.pictures import (
    PictureLimits,
    check_hosts,
    fetch_picture,
    is_remote,
    read_picture,
)

LIMITS = PictureLimits(max_bytes=20_000, max_pixels=10_000)


def file(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    PilImage.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


def url(data: bytes, head: str = "image/png") -> str:
    return f"data:{head};base64,{base64.b64encode(data).decode()}"


FILES = {kind: file(kind) for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000")}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("head", ["image/png", "image/jpeg", "", "image/png;charset=utf-8"])
def test_a_picture_is_what_its_bytes_say(kind: str, head: str) -> None:
    assert read_picture(url(file(kind), head), LIMITS) == file(kind)


def test_bytes_may_also_be_percent_encoded() -> None:
    text = "".join(f"%{byte:02x}" for byte in file())
    assert read_picture(f"data:image/png,{text}", LIMITS) == file()


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        (url(file("GIF")), 400, "invalid_image_format"),
        (url(file("BMP")), 400, "invalid_image_format"),
        (url(file("TIFF")), 400, "invalid_image_format"),
        (url(file("ICO")), 400, "invalid_image_format"),
        (url(file("PPM")), 400, "invalid_image_format"),
        (url(file("TGA")), 400, "invalid_image"),
        (url(b"RIFF\0\0\0\0WAVEfmt "), 400, "invalid_image"),
        (url(file()[:20]), 400, "invalid_image"),
        (url(b""), 400, "invalid_image"),
        (url(file(size=(200, 60))), 413, "image_too_large"),
        (url(file("PNG") + bytes(30_000)), 413, "image_too_large"),
        ("data:image/png;base64," + "A" * 200_000, 413, "image_too_large"),
        ("data:text/html;base64,AAAA", 400, "invalid_image_url"),
        ("data:image/png" + ";a" * 2_000_000, 400, "invalid_image_url"),
        ("data:image/png;base64,A", 400, "invalid_image_url"),
        ("data:image/svg+xml;base64,PHN2Zy8+", 400, "invalid_image"),
        ("", 400, "invalid_image_url"),
        ("/etc/passwd", 400, "invalid_image_url"),
        ("file:///etc/passwd", 400, "invalid_image_url"),
    ],
)
def test_what_is_no_picture_is_named(text: str, status: int, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_picture(text, LIMITS)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_no_decoder_of_another_format_sees_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it is opened")

    monkeypatch.setattr(PilImage, "open", refuse)
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000"):
        with pytest.raises(ApiError, match="JPEG, PNG and WebP are taken"):
            read_picture(url(FILES[kind]), LIMITS)


def fetch(url: str, limits: PictureLimits) -> bytes:
    return read_picture(url, limits, asyncio.run(fetch_picture(url, limits)))


class Host:
    """A web server of this machine, and the paths that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                body = {"/a.png": file(), "/long": bytes(50_000)}.get(self.path, b"")
                self.send_response(302 if self.path == "/away" else 200 if body else 404)
                self.send_header("location", "/a.png")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    found = Host()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


pytestmark = pytest.mark.net


def test_only_a_host_that_is_allowed_by_name_is_asked(host: Host) -> None:
    allowed = PictureLimits(max_bytes=20_000, max_pixels=10_000, hosts=check_hosts((host.name,)))
    assert fetch(f"http://{host.name}/a.png", allowed) == file()
    port = host.server.server_port
    others = [f"http://localhost:{port}/a.png", f"http://127.0.0.1/{port}", f"http://u:p@{host.name}/a.png"]
    others += [
        f"http://{host.name}.evil/a.png",
        f"http://evil\\@{host.name}/a.png",
        "http:///a.png",
        "http://[::/",
    ]
    before = len(host.asked)
    for other in others:
        with pytest.raises(ApiError):
            fetch(other, allowed)
    with pytest.raises(ApiError, match="fetches no URL"):
        fetch(f"http://{host.name}/a.png", LIMITS)
    assert len(host.asked) == before


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("away", "image_fetch_failed"),
        ("none", "image_fetch_failed"),
        ("long", "image_too_large"),
        ("a b", None),
    ],
)
def test_no_redirect_is_followed_and_what_comes_is_bounded(host: Host, path: str, code: str | None) -> None:
    allowed = PictureLimits(max_bytes=20_000, max_pixels=10_000, hosts=frozenset({host.name}))
    before = list(host.asked)
    with pytest.raises(ApiError) as caught:
        fetch(f"http://{host.name}/{path}", allowed)
    assert code is None or caught.value.code == code
    assert "/a.png" not in host.asked[len(before) :]


class Trickle:
    """A host that answers a byte at a time, forever, as one of these texts goes on."""

    def __init__(self, beginning: bytes, piece: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, args=(beginning, piece))
        self._thread.start()

    def _serve(self, beginning: bytes, piece: bytes) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(beginning)
            while not piece and connection.recv(1000):
                pass
            while piece:
                connection.sendall(piece)
                time.sleep(0.05)

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)
        assert not self._thread.is_alive(), "the connection is still open"


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (b"", b""),
        (b"HTTP/1.1 2", b"0"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", b"a"),
    ],
)
def test_a_host_that_never_ends_is_left(
    beginning: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "FETCH_S", 0.3)
    host = Trickle(beginning, piece)
    limits, began_s = replace(LIMITS, hosts=frozenset({host.name})), time.monotonic()
    with pytest.raises(ApiError, match="cannot be read") as caught:
        fetch(f"http://{host.name}/", limits)
    assert caught.value.code == "image_fetch_failed"
    assert time.monotonic() - began_s < 1
    host.close()


def test_a_name_that_is_not_found_in_time_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        is_over.wait(10)
        raise OSError("not found")

    monkeypatch.setattr(pictures, "FETCH_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    limits, began_s = replace(LIMITS, hosts=frozenset({"slow.example"})), time.monotonic()

    async def all_at_once() -> list[bytes | BaseException]:
        asked = (fetch_picture("http://slow.example/a.png", limits) for _ in range(pictures.MAX_FETCHES))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert all("more than 0.2 s" in str(each) for each in asyncio.run(all_at_once()))
    assert time.monotonic() - began_s < 3
    with pytest.raises(ApiError, match="pictures are being fetched"):
        fetch("http://slow.example/a.png", limits)
    is_over.set()
    until_s = time.monotonic() + 5
    while any(thread.name == "vsd-fetch" for thread in threading.enumerate()):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    with pytest.raises(ApiError, match="not found"):
        fetch("http://slow.example/a.png", limits)


def test_a_fetch_that_is_cancelled_ends_at_once_and_one_more_than_may_be_waits(
    monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    monkeypatch.setattr(pictures, "_FETCHES", threading.BoundedSemaphore(1))
    silent = Trickle(b"", b"")
    limits = PictureLimits(max_bytes=20_000, max_pixels=10_000, hosts=frozenset({silent.name, host.name}))

    async def check() -> None:
        waits = asyncio.create_task(fetch_picture(f"http://{silent.name}/", limits))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(fetch_picture(f"http://{host.name}/a.png", limits))
        await asyncio.sleep(0.1)
        assert not second.done()
        waits.cancel()
        assert await asyncio.wait_for(second, 1.0) == file()

    asyncio.run(check())
    silent.close()


@pytest.mark.parametrize("url", ["http://a/", "HTTPS://a/"])
def test_only_what_is_at_a_host_is_remote(url: str) -> None:
    assert is_remote(url)
    assert not any(map(is_remote, ("", "data:image/png;base64,", "ftp://a/", "file:///a", "/a")))


def test_names_of_hosts_are_checked() -> None:
    assert check_hosts(("A.example", "[::1]:80")) == {"a.example", "[::1]:80"}
    for wrong in ("http://a", "a/b", "*", "", "a b"):
        with pytest.raises(ConfigError, match="HOST"):
            check_hosts((wrong,))
