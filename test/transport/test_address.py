"""Which addresses are taken, and what becomes of them: numbers of both kinds, names, interfaces, nonsense."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test.net.test_sockets import CLOCK, cloud, edge
from vlm_spec_decode.core.errors import CloudError, CloudUnreachable, ConfigError
from vlm_spec_decode.transport import address, keys

HAS_IPV6 = Path("/proc/net/if_inet6").exists() and "00000001 01" in Path("/proc/net/if_inet6").read_text()
NONSENSE = (
    "",
    "5599",
    "localhost:5599",
    "tcp://",
    "tcp://localhost",
    "tcp://localhost:",
    "tcp://localhost:0",
    "tcp://localhost:65536",
    "tcp://localhost:-1",
    "tcp://localhost:５５９９",
    "tcp://:5599",
    "tcp://::1:5599",
    "tcp://[::1]",
    "tcp://[]:5599",
    "tcp://[localhost]:5599",
    "tcp://[127.0.0.1]:5599",
    "tcp://[::g]:5599",
    "tcp://[fe80::1]:5599",
    "tcp://127.0.0.300:5599",
    "tcp://127.1:5599",
    "tcp://a b:5599",
    "tcp://a/b:5599",
    "udp://127.0.0.1:5599",
    "ipc:///tmp/x",
    "tcp://127.0.0.1:5599;eth0",
    "tcp://127.0.0.1:5599 x",
)


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused_by_name(text: str) -> None:
    for use in (address.split, address.to_bind, address.split_list, address.is_loopback):
        with pytest.raises(ConfigError, match="address"):
            use(text)


@pytest.mark.parametrize("text", ["tcp://*:5599", "tcp://127.0.0.1:*", "tcp://127.0.0.1:1,tcp://*:2"])
def test_a_robot_needs_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ConfigError, match="a robot needs its host and its port"):
        address.split_list(text)


@pytest.mark.parametrize(
    ("text", "host", "is_loopback"),
    [
        ("tcp://[::1]:5599", "::1", True),
        ("tcp://[0:0:0:0:0:0:0:1]:5599", "0:0:0:0:0:0:0:1", True),
        ("tcp://[::ffff:127.0.0.1]:5599", "::ffff:127.0.0.1", True),
        ("tcp://[::]:5599", "::", False),
        ("tcp://[fe80::1%eth0]:5599", "fe80::1%eth0", False),
        ("tcp://127.0.0.2:5599", "127.0.0.2", True),
        ("tcp://localhost:5599", "localhost", True),
        ("tcp://cloud-1.example.org:5599", "cloud-1.example.org", False),
        ("tcp://*:5599", "*", False),
    ],
)
def test_hosts_and_which_of_them_are_this_machine(text: str, host: str, is_loopback: bool) -> None:
    assert address.split(text) == (host, "5599")
    assert address.is_loopback(text) == is_loopback


@contextmanager
def served(folder: Path, bind: str) -> Iterator[str]:
    with cloud(folder, bind=bind) as server:
        yield server.address.rpartition(":")[2]


@pytest.mark.net
@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 on the loopback interface")
@pytest.mark.parametrize(
    ("bind", "connect"),
    [
        ("[::1]", "[::1]"),
        ("[::]", "[::1]"),
        ("[::]", "127.0.0.1"),
        ("*", "127.0.0.1"),
        ("*", "localhost"),
        ("localhost", "localhost"),
        ("localhost", "127.0.0.1"),
        ("lo", "127.0.0.1"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
    ],
)
def test_a_robot_reaches_a_cloud(key_folder: Path, bind: str, connect: str) -> None:
    with (
        served(key_folder, f"tcp://{bind}:*") as port,
        edge(f"tcp://{connect}:{port}", key_folder) as verifier,
    ):
        assert verifier.connect(timeout_s=20.0).model_id == "table"


@pytest.mark.net
@pytest.mark.parametrize("bind", ["no-such-host.invalid", "eth99"])
def test_what_is_neither_host_nor_interface_cannot_be_bound(key_folder: Path, bind: str) -> None:
    with pytest.raises(ConfigError, match=f"{bind} is neither a known host nor an interface"):
        cloud(key_folder, bind=f"tcp://{bind}:5599").__enter__()


@pytest.mark.net
def test_an_address_of_another_machine_cannot_be_bound(key_folder: Path) -> None:
    with pytest.raises(CloudError, match=r"cannot listen on tcp://192\.0\.2\.1:5599"):
        cloud(key_folder, bind="tcp://192.0.2.1:5599").__enter__()


@pytest.mark.net
@pytest.mark.parametrize(
    ("host", "said"),
    [("127.0.0.1", "nobody listens at 127.0.0.1:"), ("no-such-host.invalid", "is no known host")],
)
def test_a_cloud_that_is_not_there_is_known_soon(key_folder: Path, host: str, said: str) -> None:
    """In three seconds and by name, although the patience with one that says nothing is longer."""
    with edge(f"tcp://{host}:9", key_folder) as verifier:
        started_s = CLOCK.now()
        with pytest.raises(CloudUnreachable, match=said):
            verifier.connect(timeout_s=20.0, refused_s=0.5)
        assert CLOCK.now() - started_s < 3.0


@pytest.mark.net
def test_a_cloud_that_is_just_starting_is_waited_for(key_folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with edge(f"tcp://127.0.0.1:{port}", key_folder) as verifier:
        with pytest.raises(CloudUnreachable):
            verifier.connect(timeout_s=0.3)
        with cloud(key_folder, bind=f"tcp://127.0.0.1:{port}"):
            assert verifier.connect(timeout_s=20.0, refused_s=2.5).model_id == "table"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, ""),
        (errno.EAGAIN, ""),
        (errno.ECONNREFUSED, "nobody listens at [::1]:5599"),
        (errno.EHOSTUNREACH, "no way leads to ::1 (EHOSTUNREACH)"),
        (errno.ENETUNREACH, "no way leads to ::1 (ENETUNREACH)"),
    ],
)
def test_what_a_refused_connection_is_called(code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect_ex", lambda self, target: code)
    assert address.refusal("tcp://[::1]:5599") == said


@pytest.fixture(scope="module")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    keys.generate(folder)
    return folder
