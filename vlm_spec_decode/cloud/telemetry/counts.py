"""Counters and gauges of a cloud as plain numbers, which any thread may read at any time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class ServerCounts:
    """Counters since the start, and below them what holds now; written by the socket's thread alone.

    `passes` are forward passes of the target and `shared` the answers' shares of them, so their ratio is the
    mean batch. `refused` and `dropped` count by name. `wait_s` adds up the time that answers were ready for a
    pass before it began.
    """

    messages: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    opened: int = 0
    finished: int = 0
    commits: int = 0
    tokens: int = 0
    drafted: int = 0
    early: int = 0
    passes: int = 0
    shared: int = 0
    largest_batch: int = 0
    pass_s: float = 0.0
    wait_s: float = 0.0
    splits: int = 0
    evictions: int = 0
    image_hits: int = 0
    image_misses: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    robots: int = 0
    sessions: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    image_bytes: int = 0
    is_draining: bool = False

    def ran(self, shares: int, duration_s: float) -> None:
        """Count one pass and the answers that shared it."""
        self.passes += 1
        self.shared += shares
        self.largest_batch = max(self.largest_batch, shares)
        self.pass_s += duration_s
