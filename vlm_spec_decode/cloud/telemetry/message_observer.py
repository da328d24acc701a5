"""Observes every message that a cloud receives and sends, and derives metrics and log records.

A decorator of the link: server protocol, scheduler and sessions do not depend on it, and it serves one
process and a router of replicas alike. It reads messages and changes none; unreadable ones are counted.
Memory is bounded for any input.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from vlm_spec_decode.cloud.telemetry.metrics import CloudMetrics
from vlm_spec_decode.core.errors import ProtocolError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import (
    AnyMessage,
    Busy,
    Close,
    Hello,
    ImageChunk,
    Open,
    Refused,
    WireCommit,
    WireDraft,
    WireEarly,
)
from vlm_spec_decode.strategies.registry import STRATEGIES
from vlm_spec_decode.transport.in_process import ServerLink

MAX_FOLLOWED = 4096
"""Answers whose times are kept; beyond it the longest silent is forgotten, which costs a figure."""

LONGEST_TEXT = 300
"""Characters of a text in a record."""

LEVELS = {"committed": logging.DEBUG, "refused": logging.WARNING}
"""Levels of the records that are not of level info."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _ObservedRequest:
    """An open answer: when it began, how far it has come, and what this cloud added."""

    opened_s: float
    strategy: str
    length: int = 0
    tokens: int = 0
    passes: int = 0


def session_id(peer: bytes, answer: int) -> str:
    """Return a short name of one answer of one robot, the same in all records and not to be turned back."""
    return f"{sha256(peer).hexdigest()[:10]}-{answer}"


class MessageObserver:
    """Follows the conversations. `token_bytes` is the packed width of a token id.

    `tells_content` puts instructions into the records; images never are.
    """

    def __init__(
        self, metrics: CloudMetrics, clock: Clock, token_bytes: int, tells_content: bool = False
    ) -> None:
        self.metrics = metrics
        self._clock = clock
        self._token_bytes = token_bytes
        self._tells_content = tells_content
        self._followed: OrderedDict[tuple[bytes, int], _ObservedRequest] = OrderedDict()

    def came(self, peer: bytes, data: bytes) -> None:
        """See a message of a robot."""
        message = self._count("in", data)
        match message:
            case Hello():
                self._tell("hello", peer, 0, software=message.software[:LONGEST_TEXT])
            case Open():
                self._on_open(peer, message)
            case WireDraft():
                self.metrics.drafted.inc(len(message.tokens) // self._token_bytes)
            case ImageChunk():
                self.metrics.image_bytes.inc(len(message.data))
            case Close():
                if followed := self._followed.pop((peer, message.answer), None):
                    self._tell("closed", peer, message.answer, tokens=followed.tokens)

    def went(self, peer: bytes, data: bytes) -> None:
        """See a message to a robot."""
        message = self._count("out", data)
        match message:
            case WireCommit():
                self._on_commit(peer, message)
            case WireEarly():
                self.metrics.early.inc()
            case Refused():
                self.metrics.refused.labels(message.reason).inc()
                reason = {"reason": message.reason, "detail": message.detail[:LONGEST_TEXT]}
                self._tell("refused", peer, message.answer, **reason)
                self._followed.pop((peer, message.answer), None)
            case Busy():
                self.metrics.refused.labels("busy").inc()
                reason = {"reason": "busy", "detail": message.reason[:LONGEST_TEXT]}
                self._tell("refused", peer, message.answer, **reason)
                self._followed.pop((peer, message.answer), None)

    def _count(self, direction: str, data: bytes) -> AnyMessage | None:
        self.metrics.bytes.labels(direction).inc(len(data))
        try:
            message = codec.decode(data)
        except ProtocolError:
            self.metrics.messages.labels(direction, "unreadable").inc()
            return None
        self.metrics.messages.labels(direction, type(message).__name__).inc()
        return message

    def _on_open(self, peer: bytes, message: Open) -> None:
        key, now_s = (peer, message.answer), self._clock.now()
        strategy = message.strategy if message.strategy in STRATEGIES else "unknown"
        if message.epoch:
            self.metrics.resumed.inc()
        else:
            self.metrics.opened.labels(strategy).inc()
        if key not in self._followed:
            known = len(message.committed) // self._token_bytes
            self._followed[key] = _ObservedRequest(now_s, strategy, known)
            while len(self._followed) > MAX_FOLLOWED:
                self._followed.popitem(last=False)
        said = {"instruction": message.instruction[:LONGEST_TEXT]} if self._tells_content else {}
        fields = {"strategy": strategy, "epoch": message.epoch, "image_bytes": message.image_bytes}
        self._tell("opened", peer, message.answer, **fields, **said)

    def _on_commit(self, peer: bytes, message: WireCommit) -> None:
        key, pass_s = (peer, message.answer), message.compute_us / 1e6
        if (followed := self._followed.get(key)) is None:
            return
        end = message.start + len(message.tokens) // self._token_bytes
        tokens = end - followed.length
        if tokens <= 0 and not message.finished:
            return  # Said before: the link had lost it.
        elapsed_s = self._clock.now() - followed.opened_s
        if not followed.passes:
            self.metrics.first_s.observe(elapsed_s)
        followed.length = max(end, followed.length)
        followed.tokens += max(0, tokens)
        followed.passes += 1
        self.metrics.committed.inc(max(0, tokens))
        self.metrics.commit_tokens.observe(max(0, tokens))
        self.metrics.pass_s.observe(pass_s)
        fields = {"round": message.pass_id, "start": message.start, "tokens": tokens, "pass_s": pass_s}
        self._tell("committed", peer, message.answer, **fields)
        if message.finished:
            del self._followed[key]
            self.metrics.finished.inc()
            self.metrics.answer_s.observe(elapsed_s)
            ended = {"tokens": followed.tokens, "rounds": followed.passes, "seconds": round(elapsed_s, 4)}
            self._tell("finished", peer, message.answer, **ended, strategy=followed.strategy)

    def _tell(self, event: str, peer: bytes, answer: int, **fields: Any) -> None:
        told: Mapping[str, Any] = {"session": session_id(peer, answer), **fields}
        log.log(LEVELS.get(event, logging.INFO), event, extra={"fields": told})


class ObservedLink:
    """A link whose messages a `MessageObserver` sees, and which knows when its owner last polled it."""

    def __init__(self, inner: ServerLink, watch: MessageObserver, clock: Clock) -> None:
        self.inner = inner
        self.polled_s = clock.now()
        self._watch = watch
        self._clock = clock

    @property
    def address(self) -> str:
        """Where peers find it."""
        return self.inner.address

    @property
    def unroutable(self) -> int:
        """Messages that no peer was there to take."""
        return self.inner.unroutable

    def poll(self, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Pass on, watching. The server polls all the time: this is its pulse."""
        self.polled_s = self._clock.now()
        for peer, data in self.inner.poll(timeout_s):
            self._watch.came(peer, data)
            yield peer, data

    def send(self, peer: bytes, data: bytes) -> None:
        """Pass on, watching."""
        self._watch.went(peer, data)
        self.inner.send(peer, data)

    def wake(self) -> None:
        """Pass on."""
        self.inner.wake()

    def close(self) -> None:
        """Pass on."""
        self.inner.close()
