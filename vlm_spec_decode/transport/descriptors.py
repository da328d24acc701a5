"""The process's limit of open files, which every socket and connection counts against.

libzmq ends the process if it finds no descriptor for a socket's own signals, and a cloud that has none left
can read no key file. So what is needed is asked for before, and a few are kept back.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_spec_decode.core.errors import ConfigError

RESERVE = 12
"""Descriptors that a cloud keeps for itself: key files, HTTP, the log, and connections that shake hands."""

CLOUD_NEEDS = 24 + RESERVE
"""Descriptors of a cloud's link before the first robot, its authenticator's among them."""

EDGE_NEEDS = 24
"""Descriptors of one robot's link: ZeroMQ's own, its sockets and their watchers, two connections."""

_OPEN_FILES = Path("/proc/self/fd")


def limit() -> int:
    """Return how many descriptors this process may have, after raising the limit as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # some systems say "unlimited" and mean less
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def free() -> int:
    """Return how many descriptors may still be opened; 0 if there is none left to look with."""
    try:
        return max(0, limit() - len(list(_OPEN_FILES.iterdir())) + 1)  # one of those found is the look's own
    except OSError as error:
        return 0 if error.errno in {errno.EMFILE, errno.ENFILE} else limit()


def require(count: int, purpose: str) -> None:
    """Make sure that `count` descriptors are free. Raises ConfigError that names limit and remedy."""
    left = free()
    if left < count:
        raise ConfigError(
            f"{purpose} needs {count} file descriptors and {left} of {limit()} are left: raise `ulimit -n`"
        )


class SpareDescriptor:
    """A descriptor that is held so that there is one when all others are used up."""

    def __init__(self) -> None:
        self._held: int | None = None
        self._hold()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the block have it."""
        self.close()
        try:
            yield
        finally:
            self._hold()

    def close(self) -> None:
        """Give it back. Idempotent."""
        if self._held is not None:
            os.close(self._held)
        self._held = None

    def _hold(self) -> None:
        try:
            self._held = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._held = None
