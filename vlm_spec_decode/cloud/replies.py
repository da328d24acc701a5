"""What a desk says: messages encoded, counted and kept for whoever owns the link."""

from __future__ import annotations

import zlib
from collections import deque

from vlm_spec_decode.cloud.entry import Entry
from vlm_spec_decode.cloud.stats import CloudStats
from vlm_spec_decode.core.types import Commit, Early
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import AnyMessage, Busy, ImageCredit, Refused


class Replies:
    """Collects (peer, bytes) in `outbox`."""

    def __init__(self, packer: codec.TokenPacker, stats: CloudStats, retry_s: float) -> None:
        self.outbox: deque[tuple[bytes, bytes]] = deque()
        self._packer = packer
        self._stats = stats
        self._retry_s = retry_s

    def send(self, peer: bytes, message: AnyMessage) -> None:
        """Say one message."""
        data = codec.encode(message)
        self._stats.sent_bytes += len(data)
        self.outbox.append((peer, data))

    def refuse(self, peer: bytes, answer: int, epoch: int, reason: str, detail: str = "") -> None:
        """Say no for good, by name."""
        self._stats.refused[reason] += 1
        self.send(peer, Refused(answer, epoch, reason, detail))

    def busy(self, peer: bytes, answer: int, epoch: int, reason: str) -> None:
        """Ask a robot to come again; each at a time of its own, or they would all come at once."""
        self._stats.refused[reason] += 1
        spread = 1 + zlib.crc32(peer) % 1000 / 1000
        self.send(peer, Busy(answer, epoch, reason, round(1000 * spread * self._retry_s)))

    def credit(self, entry: Entry) -> None:
        """Say how much of an image is here; nothing if the answer has none."""
        opened = entry.message
        if opened.image_bytes:
            received = opened.image_bytes if entry.image is not None else len(entry.received)
            self.send(entry.peer, ImageCredit(opened.answer, opened.epoch, received))

    def commit(self, entry: Entry, commit: Commit) -> None:
        """Say what is true."""
        self._stats.commits += 1
        self._stats.tokens += len(commit.tokens)
        self._stats.finished += commit.finished
        self.send(entry.peer, self._packer.commit_message(commit))

    def early(self, entry: Entry, early: Early) -> None:
        """Say what may become true."""
        self._stats.early += 1
        self.send(entry.peer, codec.early_message(early))
