"""Who may speak to the cloud, and how much: keys from a folder that is read while serving, and their limits.

Knows keys, robots' routing ids and sizes, nothing of what is said.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import zmq.auth

from vlm_spec_decode.core.ports import Clock

LOOK_S = 0.5
"""How old the list of keys may be: a key that is added or taken away counts after so long."""

ABSENT_S = 60.0
"""A robot that has been silent for so long no longer counts against its key."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may do: robots at a time, messages and bytes a second, and for how long more than that."""

    robots: int = 1024
    messages_per_s: float = 5000.0
    bytes_per_s: float = 32e6
    burst_s: float = 2.0


class AuthorizedKeys:
    """The public keys in a folder's `*.key` files. Any thread may ask."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[tuple[str, int], ...] = ()
        self._keys: frozenset[str] = frozenset()
        self._looked_s = float("-inf")

    def allows(self, key: str) -> bool:
        """Tell whether a key (Z85) is authorised now."""
        with self._lock:
            if self._clock.now() - self._looked_s >= LOOK_S:
                self._look()
                self._looked_s = self._clock.now()
            return key in self._keys

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002
        """Answer ZeroMQ's authenticator, at the handshake."""
        return self.allows(key.decode("ascii"))

    def _look(self) -> None:
        try:
            files = sorted(self._folder.glob("*.key"))
            seen = tuple((file.name, file.stat().st_mtime_ns) for file in files)
        except OSError as error:
            log.error("the authorised keys cannot be read, nobody is let in: %s", error)
            self._seen, self._keys = (), frozenset()
            return
        if seen != self._seen:
            self._seen, self._keys = seen, frozenset(key for file in files if (key := _read(file)))


def _read(file: Path) -> str | None:
    """Return the key in a file, None if there is none: one bad file must not lock all robots out."""
    try:
        public: bytes = zmq.auth.load_certificate(file)[0]
        return public.decode("ascii")
    except (OSError, ValueError) as error:
        log.warning("%s holds no public key: %s", file, error)
        return None


@dataclass(slots=True)
class _Account:
    """What one key has left, and its robots with when each was last heard."""

    messages: float
    num_bytes: float
    at_s: float
    robots: OrderedDict[bytes, float] = field(default_factory=OrderedDict)


class Guard:
    """Says of each message whether it may pass; `dropped` counts those that may not, by name.

    Its memory is bounded by the authorised keys and their limits. Without `authorized` (plaintext on
    loopback) there is one nameless key.
    """

    def __init__(self, authorized: AuthorizedKeys | None, limits: KeyLimits, clock: Clock) -> None:
        self.dropped: Counter[str] = Counter()
        self._authorized = authorized
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def admits(self, key: str, robot: bytes, num_bytes: int) -> bool:
        """Tell whether a message may pass, and charge it to its key."""
        why = self._why_not(key, robot, num_bytes)
        if why:
            self.dropped[why] += 1
        return not why

    def _why_not(self, key: str, robot: bytes, num_bytes: int) -> str:
        if self._authorized and not self._authorized.allows(key):
            # Its connection was made before the key was taken away.
            self._accounts.pop(key, None)
            return "revoked"
        now_s, limits = self._clock.now(), self._limits
        full = (limits.messages_per_s * limits.burst_s, limits.bytes_per_s * limits.burst_s)
        account = self._accounts.setdefault(key, _Account(*full, now_s))
        elapsed_s, account.at_s = now_s - account.at_s, now_s
        account.messages = min(full[0], account.messages + elapsed_s * limits.messages_per_s)
        account.num_bytes = min(full[1], account.num_bytes + elapsed_s * limits.bytes_per_s)
        if account.messages < 1 or account.num_bytes < num_bytes:
            return "too_fast"
        account.messages -= 1
        account.num_bytes -= num_bytes
        return "" if self._has_place(account.robots, robot, now_s) else "too_many_robots"

    def _has_place(self, robots: OrderedDict[bytes, float], robot: bytes, now_s: float) -> bool:
        if robot not in robots and len(robots) >= self._limits.robots:
            silent, heard_s = next(iter(robots.items()))
            if now_s - heard_s < ABSENT_S:
                return False
            del robots[silent]
        robots[robot] = now_s
        robots.move_to_end(robot)
        return True
