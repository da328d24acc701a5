"""Keys, the loopback rule, foreign pages, large and slow bodies, connections that say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse, Response

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.serve.access import (
    AccessKeys,
    BindAddress,
    HttpLimits,
    RateLimit,
    bind_address,
    check_exposure,
    make_key,
    read_keys,
    tls_files,
)
from vlm_spec_decode.serve.guard import STATUS, Guard, host_name
from vlm_spec_decode.serve.server import HttpServer

KEY, OTHER = "0123456789abcdef-one", "0123456789abcdef-two"
LIMITS = HttpLimits(body_bytes=1000, body_s=0.4, header_s=0.4, write_s=0.4, connections=8)


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "keys"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, f"# ours\n{KEY}\nrobot {OTHER} view,command # theirs\n\n")
    monkeypatch.setenv("KEYS_OF_TEST", f" {KEY}3 , {KEY}4")
    keys = read_keys(file, "KEYS_OF_TEST")
    assert len(keys) == 4
    found = {text: keys.find(text) for text in (KEY, OTHER, f"{KEY}3", f"{KEY}4")}
    assert [key.name for key in found.values() if key] == [
        "line2",
        "robot",
        "KEYS_OF_TEST.1",
        "KEYS_OF_TEST.2",
    ]
    robot = found[OTHER]
    assert robot is not None
    assert robot.rights == {"view", "command"}
    assert KEY not in repr(found[KEY])
    for wrong in ("", KEY[:-1], KEY + "x", KEY.upper(), "\udcff"):
        assert keys.find(wrong) is None
    assert len(read_keys()) == 0


@pytest.mark.parametrize(
    ("text", "mode", "match"),
    [
        ("short", 0o600, "16 printable"),
        (KEY, 0o640, "chmod 600"),
        ("# nothing", 0o600, "no key in it"),
        (f"a {KEY} view more", 0o600, "is wanted"),
        (f"a/b {KEY}", 0o600, "is wanted"),
        ("schlüssel-aus-umlauten", 0o600, "no file of keys"),
    ],
)
def test_a_file_that_is_no_file_of_keys(tmp_path: Path, text: str, mode: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_keys(written(tmp_path, text, mode))


def test_a_key_with_a_hash_is_whole_and_a_secret_is_in_no_error(tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path, f"{KEY}#rest\nrobot {OTHER} # theirs"))
    assert keys.find(f"{KEY}#rest") is not None
    assert keys.find(KEY) is None
    with pytest.raises(ConfigError, match=":1: 16 printable") as error:
        read_keys(written(tmp_path, f"{KEY} robot"))
    assert KEY not in str(error.value)


def test_nothing_beyond_loopback_without_a_key() -> None:
    keys = AccessKeys([make_key("a", KEY)])
    for text, is_loopback in [
        ("127.0.0.1:0", True), ("localhost:80", True), ("[::1]:80", True), ("[::ffff:127.0.0.1]:80", True),
        ("0.0.0.0:80", False), ("[::]:80", False), ("10.0.0.2:80", False), ("robot:80", False),
    ]:  # fmt: skip
        address = bind_address(text)
        assert address.is_loopback is is_loopback
        check_exposure(address, keys)
        if not is_loopback:
            with pytest.raises(ConfigError, match="only with a key"):
                check_exposure(address, AccessKeys())
    for wrong in ("80", "host", "host:99999", "::1:80", "a b:80", ""):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            bind_address(wrong)


def test_tls_files_are_checked_before_anything_listens(tmp_path: Path) -> None:
    assert tls_files(None, None) is None
    with pytest.raises(ConfigError, match="name both"):
        tls_files(tmp_path, None)
    files = tls_files(written(tmp_path, "no certificate"), tmp_path / "keys")
    assert files is not None
    with pytest.raises(ConfigError, match="no TLS certificate"):
        files.context()


def test_a_rate_limit_gives_a_burst_and_then_its_rate() -> None:
    now_s = [0.0]
    limit = RateLimit(2.0, 3, lambda: now_s[0])
    assert [limit.take() for _ in range(3)] == [0, 0, 0]
    assert limit.take() == pytest.approx(0.5)
    now_s[0] = 0.5
    assert (limit.take(), limit.take() > 0) == (0, True)


def refuse(reason: str, text: str) -> Response:
    return PlainTextResponse(text, STATUS[reason])


HELD = threading.Semaphore(0)
"""Has one for each request that is answered "when its client leaves", once that has left."""

SENT: list[int] = []
"""Pieces that each endless reply has sent, once it has ended."""


async def counting(scope: Any, receive: Any, send: Any) -> None:
    """An app that says how long the body is; `/held` waits until the client leaves, `/endless` never ends."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/held":
        await _disconnected(receive)
        HELD.release()
        return
    if scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone, count = asyncio.ensure_future(_disconnected(receive)), 0
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            count += 1
        SENT.append(count)
        return
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await PlainTextResponse(f"{size} {scope['state']['key'] and scope['state']['key'].name}")(
        scope, receive, send
    )


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.fixture(params=["keys", "no keys"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[tuple[HttpServer, bool]]:
    keys = AccessKeys([make_key("a", KEY)] if request.param == "keys" else ())
    app = Guard(counting, keys, LIMITS, refuse, public=("/health",), origins=("http://ours",))
    found = HttpServer(app, BindAddress("127.0.0.1", 0), limits=LIMITS)
    found.start()
    yield found, request.param == "keys"
    found.close()


pytestmark = pytest.mark.net


def test_who_is_let_through(server: tuple[HttpServer, bool]) -> None:
    http, has_keys = server
    key = {"authorization": f"Bearer {KEY}"} if has_keys else {}
    with httpx.Client(base_url=http.url) as client:
        assert client.post("/x", content=b"12345", headers=key).text == f"5 {'a' if has_keys else None}"
        assert client.get("/health").status_code == 200
        assert client.get("/x", headers={**key, "origin": "http://evil"}).status_code == 403
        assert client.get("/x", headers={**key, "origin": "http://ours"}).status_code == 200
        assert client.get("/x", headers={**key, "origin": http.url}).status_code == 200
        by_name = client.get("/x", headers={**key, "host": f"evil.example:{http.port}"})
        assert by_name.status_code == (200 if has_keys else 403), "a name that points here needs a key"
        for wrong in (
            {},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"authorization": "Bearer"},
        ):
            assert client.get("/x", headers=wrong).status_code == (401 if has_keys else 200)
        assert client.get("/Health").status_code == (401 if has_keys else 200), (
            "only that very path is public"
        )


def test_bodies_have_a_size_and_a_deadline(server: tuple[HttpServer, bool]) -> None:
    http, has_keys = server
    key = {"authorization": f"Bearer {KEY}"} if has_keys else {}
    with httpx.Client(base_url=http.url, headers=key) as client:
        assert client.post("/x", content=b"a" * 1000).text.startswith("1000 ")
        assert client.post("/x", content=b"a" * 1001).status_code == 413
        assert client.post("/x", content=iter([b"a" * 600] * 2)).status_code == 413, "also without its length"
        assert client.get("/x").status_code == 200, "the connection goes on"
    head = (
        f"POST /x HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-length: 50\r\n\r\nab"
    )
    status, took_s = spoken(http.port, head.encode())
    assert status == b"408"
    assert took_s < 2


def test_connections_that_say_nothing_are_closed(server: tuple[HttpServer, bool]) -> None:
    for said in (b"", b"GET /x HT", b"GET /x HTTP/1.1\r\nhost: localhost\r\nx: "):
        status, took_s = spoken(server[0].port, said)
        assert status == b""
        assert 0.2 < took_s < 3


def test_there_are_only_so_many_connections(server: tuple[HttpServer, bool]) -> None:
    port, kept = server[0].port, LIMITS.connections
    many = [socket.create_connection(("127.0.0.1", port)) for _ in range(kept + 4)]
    try:
        for each in many:
            each.settimeout(5)
            with contextlib.suppress(OSError):
                each.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        served = [first_bytes(each) == b"HTTP" for each in many]
        assert sum(served) == kept
    finally:
        for each in many:
            each.close()
    until_s = time.monotonic() + 3
    while spoken(port, HEAD.format("x").encode())[0] != b"200":  # the server must notice that they are gone
        assert time.monotonic() < until_s, "closed connections count"


HEAD = f"GET /{{}} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\r\n"


@pytest.mark.parametrize("behind", ["", "GET /x HTTP/1.1\r\n", "GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_a_client_that_leaves_is_noticed_whatever_it_has_sent_ahead(
    server: tuple[HttpServer, bool], behind: str
) -> None:
    with socket.create_connection(("127.0.0.1", server[0].port)) as connection:
        connection.sendall(HEAD.format("held").encode())
        time.sleep(0.05)
        connection.sendall(behind.encode())
        time.sleep(0.05)
    assert HELD.acquire(timeout=2)


def test_what_is_sent_ahead_is_answered_in_its_turn_and_bounded(server: tuple[HttpServer, bool]) -> None:
    port = server[0].port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(HEAD.format("x").encode() * 3)
        found = b""
        while found.count(b"HTTP/1.1 200") < 3:
            part = connection.recv(4096)
            assert part, found
            found += part
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(HEAD.format("held").encode())
        with contextlib.suppress(ConnectionError):
            connection.sendall(HEAD.format("x" * 1000).encode() * 500)
            assert connection.recv(10) == b""
    assert HELD.acquire(timeout=2)


def test_a_client_that_does_not_read_is_cut_off(server: tuple[HttpServer, bool]) -> None:
    with socket.create_connection(("127.0.0.1", server[0].port)) as connection:
        before, began_s = len(SENT), time.monotonic()
        connection.sendall(HEAD.format("endless").encode())
        while len(SENT) == before and time.monotonic() < began_s + 8:
            time.sleep(0.02)
        assert len(SENT) > before, "it waits forever"


def test_a_client_that_reads_slowly_is_served_on(server: tuple[HttpServer, bool]) -> None:
    with socket.create_connection(("127.0.0.1", server[0].port), timeout=5) as connection:
        connection.sendall(HEAD.format("endless").encode())
        until_s = time.monotonic() + 4 * LIMITS.write_s
        while time.monotonic() < until_s:
            assert connection.recv(1 << 20)
            time.sleep(0.1)


def test_a_reply_reaches_a_client_that_still_writes(server: tuple[HttpServer, bool]) -> None:
    """Also on a connection that is closed after it: closed on unread bytes, it would lose the reply."""
    lines = ["POST /x HTTP/1.1", "host: evil.example", "origin: http://evil", "content-length: 3900"]
    for last in ("connection: close", "x: y"):
        with socket.create_connection(("127.0.0.1", server[0].port), timeout=5) as connection:
            connection.sendall(("\r\n".join([*lines, last]) + "\r\n\r\n").encode())
            for _ in range(3):
                connection.sendall(b"a" * 1300)
                time.sleep(0.02)
            assert connection.recv(100)[9:12] == b"403"


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    files = tls_files(folder / "cert.pem", folder / "key.pem")
    app = Guard(counting, AccessKeys(), LIMITS, refuse)
    found = HttpServer(app, BindAddress("127.0.0.1", 0), files, LIMITS)
    found.start()
    yield found
    found.close()


def test_tls_handshakes_that_never_end_are_ended_and_counted(tls_server: HttpServer) -> None:
    port, began_s = tls_server.port, time.monotonic()
    many = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(LIMITS.connections)]
    many[0].sendall(b"\x16\x03\x01\x02")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one_too_many:
        assert first_bytes(one_too_many) == b"", "handshakes count"
    assert all(first_bytes(each) == b"" for each in many)
    assert time.monotonic() - began_s < 3
    for each in many:
        each.close()
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with httpx.Client(base_url=tls_server.url, verify=trusting) as client:
        assert [client.post("/x", content=b"a" * size).text for size in (0, 900)] == ["0 None", "900 None"]


def spoken(port: int, data: bytes) -> tuple[bytes, float]:
    """Return the status of what comes back, "" for an end, and after how long."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began_s = time.monotonic()
        connection.settimeout(10)
        connection.sendall(data)
        found = first_bytes(connection, 100)
        return found[9:12], time.monotonic() - began_s


def first_bytes(connection: socket.socket, count: int = 4) -> bytes:
    try:
        return connection.recv(count)
    except ConnectionError:
        return b""


def test_replies_are_sent_at_once(server: tuple[HttpServer, bool]) -> None:
    """asyncio sets TCP_NODELAY by the protocol; without it the second part of a reply waits 40 ms."""
    assert server[0]._socket.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_named(server: tuple[HttpServer, bool]) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        HttpServer(counting, BindAddress("127.0.0.1", server[0].port))


@pytest.mark.parametrize(
    ("host", "name"),
    [("a:80", "a"), ("a", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("", ""), ("localhost:", "localhost")],
)
def test_names_in_host_headers(host: str, name: str) -> None:
    assert host_name(host) == name
