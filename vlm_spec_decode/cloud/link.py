"""What the server needs of whoever moves bytes between it and its peers.

A `RouterLink` is one, and so are its decorators and the mailbox of a replica; the server cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class ServerLink(Protocol):
    """Bytes of many peers. Owned by the thread that calls `poll`; only `wake` comes from elsewhere."""

    @property
    def address(self) -> str:
        """Where peers find it."""
        ...

    @property
    def unroutable(self) -> int:
        """Messages that no peer was there to take."""
        ...

    def poll(self, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Yield (peer, bytes) of what has come, waiting for at most `timeout_s` or until `wake`."""
        ...

    def send(self, peer: bytes, data: bytes) -> None:
        """Send without waiting; what cannot be sent is counted."""
        ...

    def wake(self) -> None:
        """End a `poll` early. From one other thread."""
        ...

    def close(self) -> None:
        """Free everything. Idempotent enough to be called once by `serve`."""
        ...
