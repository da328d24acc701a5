"""Which clients may use the cloud, and how much: authorised keys from a folder, and limits per key.

ZeroMQ asks at every handshake (ZAP). A robot without an authorised key is refused, and so is one for which
no file descriptor is left, with another status; robots that are connected stay so. Every message counts
against the limits of its key. Uses keys, routing ids and sizes, not the content of messages.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import zmq
from zmq.auth.thread import ThreadAuthenticator

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.connection import (
    NO_ROOM_CODE,
    RESERVE,
    SpareDescriptor,
    descriptor_limit,
    free_descriptors,
)

SCAN_EVERY_S = 0.5
"""How old the list of keys may be: an added or removed key takes effect after at most this time."""

SETTLED_S = 2.0
"""A file that changed less than this ago is read at every scan: file times have a coarse resolution."""

KEPT_S = 10.0
"""How long known keys stay valid while they cannot be read because this process has no descriptor left."""

ABSENT_S = 60.0
"""A robot that has been silent for so long no longer counts against its key."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Limits of one key: robots at a time, messages and bytes a second, and seconds of a burst above that."""

    robots: int = 1024
    messages_per_s: float = 5000.0
    bytes_per_s: float = 32e6
    burst_s: float = 2.0


@dataclass(frozen=True, slots=True)
class _File:
    """A key file as it was last read. `state` None: it must be read again at the next scan."""

    state: tuple[int, ...] | None
    key: str | None
    problem: str = ""


class AuthorizedKeys:
    """The public keys in a folder's `*.key` files. Thread-safe.

    A file is read again when its size, inode, mtime or ctime has changed, and at every scan if it changed
    while it was read or could not be read.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._keys: frozenset[str] = frozenset()
        self._last_error = ""
        self._spare = SpareDescriptor()
        self._scanned_s = self._read_s = float("-inf")

    def allows(self, key: str) -> bool:
        """Return whether a key (Z85) is authorised now."""
        with self._lock:
            if self._clock.now() - self._scanned_s >= SCAN_EVERY_S:
                self._scan_folder()
                self._scanned_s = self._clock.now()
            return key in self._keys

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002
        """Answer ZeroMQ's authenticator, at the handshake."""
        return self.allows(key.decode("ascii"))

    def _scan_folder(self) -> None:
        try:
            with self._spare.released():
                with os.scandir(self._folder) as found:
                    names = sorted(path.name for path in found if path.name.endswith(".key"))
                self._files = {name: self._file(name) for name in names}
        except OSError as error:
            self._on_read_error(error)
            return
        self._keys = frozenset(file.key for file in self._files.values() if file.key)
        self._read_s, self._last_error = self._clock.now(), ""

    def _on_read_error(self, error: OSError) -> None:
        """Authorise no key; but if this process lacks descriptors, leave the keys valid for `KEPT_S`."""
        is_ours = error.errno in {errno.EMFILE, errno.ENFILE}
        if is_ours and self._clock.now() - self._read_s < KEPT_S:
            return
        self._files, self._keys = {}, frozenset()
        if str(error) != self._last_error:
            self._last_error = str(error)
            log.error("the authorised keys cannot be read, so every robot is refused: %s", error)

    def _file(self, name: str) -> _File:
        """Return a file as it is now, read only if it may have changed."""
        path, known = self._folder / name, self._files.get(name)
        try:
            state = _state(path)
            if known and state and known.state == state:
                return known
            key = keys.read_public(path)
            return _File(state if state == _state(path) else None, key)
        except (OSError, ConfigError) as error:
            if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
                raise
            if known is None or known.problem != str(error):
                log.warning("%s holds no public key: %s", path, error)
            return _File(None, None, str(error))


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes with a file's content; None if it changed so recently that times cannot show it."""
    found = path.stat()
    if found.st_ctime > time.time() - SETTLED_S:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(slots=True)
class _Account:
    """The remaining allowance of one key, and its robots with the time of each one's last message."""

    messages: float
    num_bytes: float
    at_s: float
    robots: OrderedDict[bytes, float] = field(default_factory=OrderedDict)


class AccessControl:
    """Decides for each message whether it may pass; `dropped` counts refused ones by reason.

    Its memory is bounded by the authorised keys and their limits. Without `authorized` (plaintext on
    loopback) there is one nameless key.
    """

    def __init__(self, authorized: AuthorizedKeys | None, limits: KeyLimits, clock: Clock) -> None:
        self.dropped: Counter[str] = Counter()
        self._authorized = authorized
        self._limits = limits
        self._most = (limits.messages_per_s * limits.burst_s, limits.bytes_per_s * limits.burst_s)
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def admits(self, key: str, robot: bytes, num_bytes: int) -> bool:
        """Return whether a message may pass, and count it against its key's limits."""
        why = self._refusal(key, robot, num_bytes)
        if why:
            self.dropped[why] += 1
        return not why

    def owner_of(self, robot: bytes) -> bytes:
        """Return who may share a robot's answers: its key, or where there are none the robot itself."""
        named = (key for key, account in self._accounts.items() if key and robot in account.robots)
        return next(named, "").encode() or robot

    def _refusal(self, key: str, robot: bytes, num_bytes: int) -> str:
        if self._authorized and not self._authorized.allows(key):
            # Its connection was made before the key was removed.
            self._accounts.pop(key, None)
            return "revoked"
        now_s, limits, most = self._clock.now(), self._limits, self._most
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(*most, now_s)
        elapsed_s, account.at_s = now_s - account.at_s, now_s
        account.messages = min(most[0], account.messages + elapsed_s * limits.messages_per_s)
        account.num_bytes = min(most[1], account.num_bytes + elapsed_s * limits.bytes_per_s)
        if account.messages < 1 or account.num_bytes < num_bytes:
            return "too_fast"
        account.messages -= 1
        account.num_bytes -= num_bytes
        return "" if self._has_room(account.robots, robot, now_s) else "too_many_robots"

    def _has_room(self, robots: OrderedDict[bytes, float], robot: bytes, now_s: float) -> bool:
        if robot not in robots and len(robots) >= self._limits.robots:
            silent, heard_s = next(iter(robots.items()))
            if now_s - heard_s < ABSENT_S:
                return False
            del robots[silent]
        robots[robot] = now_s
        robots.move_to_end(robot)
        return True


class AllowedKeys(Protocol):
    """Which public keys may connect."""

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key (Z85) may."""
        ...


ZAP_DOMAIN = "vsd"

WARN_EVERY_S = 10.0
"""How often the log warns that robots are refused."""

FEW_ROBOTS = 256
"""A cloud that has room for fewer robots logs a warning when it starts."""

log = logging.getLogger(__name__)


class Authenticator(ThreadAuthenticator):  # type: ignore[misc]  # pyzmq's has no types
    """Answers ZeroMQ's authentication requests on a thread of its own, from `start` to `stop`.

    Clients refused for lack of descriptors are counted in `dropped` as `no_descriptors`. Without
    `authorized` (plaintext on loopback) every other client may connect.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        authorized: AllowedKeys | None,
        dropped: Counter[str],
        clock: Clock,
    ) -> None:
        super().__init__(context)
        self._dropped = dropped
        self._clock = clock
        self._warned_s = float("-inf")
        if authorized:
            self.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=authorized)

    def warn_if_few_descriptors(self) -> None:
        """Log a warning if there are descriptors for only a few robots."""
        room = max(0, free_descriptors() - RESERVE)
        if room < FEW_ROBOTS:
            log.warning(
                "the limit of %d file descriptors leaves room for %d robots: raise `ulimit -n`",
                descriptor_limit(),
                room,
            )

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Answer one handshake."""
        if len(msg) >= 2 and free_descriptors() < RESERVE:
            self._refuse_connection(msg[1])
        else:
            await super().handle_zap_message(msg)

    def _refuse_connection(self, request_id: bytes) -> None:
        self._dropped["no_descriptors"] += 1
        self._send_zap_reply(request_id, str(NO_ROOM_CODE).encode(), b"No file descriptors left")
        if self._clock.now() - self._warned_s >= WARN_EVERY_S:
            self._warned_s = self._clock.now()
            log.warning(
                "robots are turned away, %d so far: the limit of %d file descriptors is reached; "
                "raise `ulimit -n`",
                self._dropped["no_descriptors"],
                descriptor_limit(),
            )
