"""Addresses of the cloud, and the rule that plaintext stays on the loopback interface."""

from __future__ import annotations

import errno
import ipaddress
import re
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

from vlm_spec_decode.core.errors import CloudUnreachable, ConfigError

if TYPE_CHECKING:
    from vlm_spec_decode.core.ports import Clock

FORM = "tcp://HOST:PORT, an IPv6 host in brackets"
SILENCE = "no answer at all: host off, another network, or a firewall"
LISTENER_POLL_S = 0.1
BACKLOG = 1024
"""Connections that wait to be accepted: after a front has gone its robots come back all at once."""
DEFAULT_PORT = 5557
"""Port of a cloud by default."""

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03"
"""The beginning of ZeroMQ's greeting: a signature of ten bytes and the major version."""

_TCP = re.compile(r"tcp://(?P<host>\[[^\[\]\s/]+\]|\*|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5}|\*)")
_NUMBERS = re.compile(r"[0-9.]+")


def split(address: str) -> tuple[str, str]:
    """Return host, without brackets, and port of `tcp://HOST:PORT`. Raises ConfigError."""
    match = _TCP.fullmatch(address)
    if not match or (match["port"] != "*" and not 0 < int(match["port"]) < 65536):
        raise ConfigError(f"{address!r} is no address of the form {FORM}")
    host = match["host"].strip("[]")
    if match["host"] != host or _NUMBERS.fullmatch(host):
        _check_ip(address, host, is_v6=match["host"] != host)
    return host, match["port"]


def _check_ip(address: str, host: str, *, is_v6: bool) -> None:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigError(f"{address!r} holds no IP address: {error}") from error
    if is_v6 != (ip.version == 6):
        raise ConfigError(f"{address!r} is no address of the form {FORM}")
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local and not ip.scope_id:
        raise ConfigError(f"{address!r}: a link-local address needs its interface, as in [{ip}%eth0]")


def split_list(text: str) -> tuple[str, ...]:
    """Return the addresses in a list with commas, each once, for a robot to connect to.

    Raises ConfigError.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for one in found:
        if "*" in split(one):
            raise ConfigError(f"{one!r}: a cloud may listen on *, a robot needs its host and its port")
    return found


def check_cloud(text: str, *, encrypted: bool) -> tuple[str, ...]:
    """Return the clouds in a list with commas. Raises ConfigError, also for plaintext beyond loopback."""
    found = split_list(text)
    for one in found if not encrypted else ():
        require_loopback(one)
    return found


def is_loopback(address: str) -> bool:
    """Return whether an address can only be reached from this machine."""
    return is_loopback_host(split(address)[0])


def is_loopback_host(host: str) -> bool:
    """Return whether a host's name, or IP address without brackets, can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def require_loopback(address: str) -> None:
    """Refuse plaintext beyond loopback. Raises ConfigError."""
    if not is_loopback(address):
        raise ConfigError(f"{address}: without CURVE keys only loopback is allowed")


def to_bind(address: str) -> tuple[str, bool]:
    """Return an address as ZeroMQ binds it, and whether that takes IPv6. Raises ConfigError.

    ZeroMQ binds numbers, `*` (every IPv4 interface) and names of interfaces, no names of hosts.
    """
    host, port = split(address)
    if host == "localhost":
        host = "127.0.0.1"
    elif host != "*" and not _is_ip(host) and host not in {name for _, name in socket.if_nameindex()}:
        host = _resolved(address, host)
    return _join(host, port), ":" in host


def shared_listener(endpoint: str) -> tuple[str, int]:
    """Listen at an endpoint of `to_bind` in such a way that other processes of this user may, too.

    Returns the endpoint, with the port that was given in place of `*`, and the descriptor, which the caller
    owns. Raises OSError, and ConfigError for the name of an interface.
    """
    host, port = split(endpoint)
    host = "0.0.0.0" if host == "*" else host  # what `*` means
    if not _is_ip(host):
        raise ConfigError(f"{endpoint}: a port is shared on an IP address, a host's name or *")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(socket.getaddrinfo(host, 0 if port == "*" else int(port))[0][4])
        listener.listen(BACKLOG)
        listener.setblocking(False)
        found = listener.getsockname()[1]
        return _join(host, str(found)), listener.detach()


@cache
def needs_ipv6(address: str) -> bool:
    """Return whether ZeroMQ must use IPv6 to connect: an IPv6 address, or a name that has no other."""
    host, port = split(address)
    if _is_ip(host):
        return ":" in host
    try:
        families = {found[0] for found in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return socket.AF_INET not in families


def refusal(address: str, timeout_s: float = 0.5, silence: str = "") -> str:
    """Return why no TCP connection to an address can be made; "" if one can, `silence` if none is answered.

    Opens a connection and closes it again.
    """
    host, port = split(address)
    family = socket.AF_INET6 if needs_ipv6(address) else socket.AF_INET
    try:
        target = socket.getaddrinfo(host, int(port), family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        return f"{host} is no known host ({error.strerror})"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        code = probe.connect_ex(target)
    if code == errno.ECONNREFUSED:
        return f"nobody listens at {_join(host, port).removeprefix('tcp://')}"
    if code in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENODEV}:
        return f"no way leads to {host} ({errno.errorcode[code]})"
    return silence if code else ""


def wait_for_listener(clouds: str, patience_s: float, clock: Clock) -> None:
    """Return when one of the clouds, a list with commas, accepts a TCP connection.

    It is called before models are loaded. A cloud that refuses, or whose name is not known, is tried again
    until `patience_s` is over; a host that does not answer at all gets the same time. Raises
    CloudUnreachable with the reason of each.
    """
    until_s = clock.now() + patience_s
    found = split_list(clouds)
    while True:
        problems = {one: refusal(one, max(0.2, until_s - clock.now()), SILENCE) for one in found}
        if not all(problems.values()):
            return
        if clock.now() >= until_s:
            each = "; ".join(f"cloud {one}: {why}" for one, why in problems.items())
            raise CloudUnreachable(
                f"{each}; refused or silent for {patience_s:g} s; is `vsd cloud` running there?"
            )
        clock.sleep(LISTENER_POLL_S)


def round_trips(clouds: Sequence[str], timeout_s: float) -> list[float | None]:
    """Return the round trip to each cloud in seconds, None where no echo came in `timeout_s`. All at once.

    The echo is ZeroMQ's greeting: the other end sends its version once it has seen ours. That needs no key
    and leaves no session, and unlike a TCP handshake it comes from the server itself, not from a proxy on the
    way to it.
    """
    found: list[float | None] = [None] * len(clouds)
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for number, address in enumerate(clouds):
            if probe := _connecting(address):
                stack.enter_context(probe)
                selector.register(probe, selectors.EVENT_WRITE, _Echo(number))
        until_s = time.monotonic() + timeout_s
        while selector.get_map() and (left_s := until_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                probe, echo = cast("socket.socket", key.fileobj), cast("_Echo", key.data)
                try:
                    is_waiting = echo.go_on(probe)
                except OSError:
                    is_waiting = False
                if is_waiting:
                    selector.modify(probe, selectors.EVENT_READ, echo)
                else:
                    selector.unregister(probe)
                    found[echo.number] = echo.rtt_s
    return found


@dataclass(slots=True)
class _Echo:
    """How far the probe of one cloud is."""

    number: int
    sent_s: float | None = None
    received: int = 0
    rtt_s: float | None = None

    def go_on(self, probe: socket.socket) -> bool:
        """Send our greeting, or read of the other one; return whether more is to come. Raises OSError."""
        if self.sent_s is None:
            self.sent_s = time.monotonic()
            probe.sendall(_GREETING)
            return True
        data = probe.recv(64)
        self.received += len(data)
        # The signature comes by itself, what is behind it only after ours.
        if self.received >= len(_GREETING):
            self.rtt_s = time.monotonic() - self.sent_s
        return bool(data) and self.rtt_s is None


def _connecting(address: str) -> socket.socket | None:
    """Return a socket that begins to connect to an address, None if it cannot."""
    host, port = split(address)
    family = socket.AF_INET6 if needs_ipv6(address) else socket.AF_INET
    try:
        target = socket.getaddrinfo(host, int(port), family, socket.SOCK_STREAM)[0][4]
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    probe.setblocking(False)
    if probe.connect_ex(target) in {0, errno.EINPROGRESS}:
        return probe
    probe.close()
    return None


def _resolved(address: str, host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(f"{address!r}: {host} is neither a known host nor an interface") from error


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _join(host: str, port: str) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
