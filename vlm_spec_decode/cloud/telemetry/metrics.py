"""The cloud's metrics for Prometheus and its log records, derived from the messages of the service.

`MessageObserver` receives every message that the service has decoded or sent; the service does not depend
on it. `ServiceTelemetry` connects metrics, log and health of one service. Labels are closed sets: content
from a peer never becomes a label, because clients could then fill the memory of the metrics store. No
metric contains an image, an instruction or a key, and memory is bounded for any input.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlm_spec_decode import __version__
from vlm_spec_decode.cloud.config import HTTP_OFF, CloudConfig
from vlm_spec_decode.cloud.protocol import MessageTracer
from vlm_spec_decode.cloud.requests import ServerCounts
from vlm_spec_decode.cloud.telemetry import health
from vlm_spec_decode.core.ports import Clock, ModelCard
from vlm_spec_decode.protocol.codec import TokenPacker
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

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Bounds of the histograms of time: a tiny model's pass to an answer over a bad link."""

TOKENS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
"""Bounds of the histogram of tokens in a commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """Values read from the service on demand, all without a lock: whole numbers, no iteration.

    `dropped` counts ignored messages by the server protocol's reasons.
    """

    sessions: int = 0
    peers: int = 0
    unroutable: int = 0
    is_ready: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    replicas: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)


GAUGE_TEXTS = {
    "waiting": "Answers that are ready for a pass and wait.",
    "kv_bytes": "Memory of all answers' caches.",
    "image_cache_bytes": "Memory of held images.",
    "robots_moved": "Moves of robots between replicas.",
}
COUNTER_TEXTS = {
    "passes": "Forward passes of the target.",
    "pass_shares": "Shares of answers in passes; by passes it is the mean batch.",
    "pass_wait_seconds": "Time that answers waited for a pass.",
    "batch_splits": "Passes that memory did not hold and that were split.",
    "evictions": "Caches that were dropped and computed again.",
    "image_cache_hits": "Images that were there.",
    "image_cache_misses": "Images that had to come.",
}
"""Gauges and counters of the server protocol and the scheduler, without the prefix `vsd_`."""


def gauges_and_counters(stats: ServerCounts) -> tuple[dict[str, float], dict[str, float]]:
    """Return the gauges and counters of a server, under the names of `GAUGE_TEXTS` and `COUNTER_TEXTS`."""
    gauge_values = {
        "waiting": stats.waiting,
        "kv_bytes": stats.kv_bytes,
        "image_cache_bytes": stats.image_bytes,
    }
    counter_values = {
        "passes": stats.passes,
        "pass_shares": stats.batched_answers,
        "pass_wait_seconds": stats.wait_s,
        "batch_splits": stats.splits,
        "evictions": stats.evictions,
        "image_cache_hits": stats.image_hits,
        "image_cache_misses": stats.image_misses,
    }
    return dict(gauge_values), dict(counter_values)


class _GaugeCollector(Collector):
    """Turns the gauges of the moment into metrics."""

    def __init__(self, read: Callable[[], Gauges]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Yield the figures of now."""
        now = self._read()
        yield GaugeMetricFamily("vsd_sessions", "Answers that are open.", value=now.sessions)
        yield GaugeMetricFamily("vsd_peers", "Robots that have shaken hands.", value=now.peers)
        yield GaugeMetricFamily("vsd_ready", "1 if new answers are taken.", value=float(now.is_ready))
        yield CounterMetricFamily(
            "vsd_unroutable", "Messages that a robot was not there to take.", value=now.unroutable
        )
        dropped = CounterMetricFamily("vsd_dropped", "Messages that were ignored.", labels=["reason"])
        for reason, count in sorted(now.dropped.items()):
            dropped.add_metric([reason], count)
        yield dropped
        replicas = GaugeMetricFamily("vsd_replicas", "Copies of the target.", labels=["state"])
        for state, count in sorted(now.replicas.items()):
            replicas.add_metric([state], count)
        yield replicas
        for name, text in GAUGE_TEXTS.items():
            yield GaugeMetricFamily(f"vsd_{name}", text, value=now.more.get(name, 0))
        for name, text in COUNTER_TEXTS.items():
            yield CounterMetricFamily(f"vsd_{name}", text, value=now.counts.get(name, 0))


class CloudMetrics:
    """All figures of one process, in a registry of their own."""

    def __init__(self, read: Callable[[], Gauges] | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        if read:
            self.registry.register(_GaugeCollector(read))
        self.build = self._gauge("vsd_build", "What is served.", "version", "model", "revision")
        self.messages = self._counter("vsd_messages", "Messages.", "direction", "kind")
        self.bytes = self._counter("vsd_bytes", "Bytes of messages.", "direction")
        self.opened = self._counter("vsd_answers_opened", "Answers begun.", "strategy")
        self.resumed = self._counter("vsd_answers_resumed", "Answers that went on under a new epoch.")
        self.finished = self._counter("vsd_answers_finished", "Answers that came to their end.")
        self.refused = self._counter("vsd_refusals", "Refusals.", "reason")
        self.drafted = self._counter("vsd_tokens_drafted", "Draft tokens that came in.")
        self.committed = self._counter("vsd_tokens_committed", "Tokens of answers sent out.")
        self.early = self._counter("vsd_early_verdicts", "Early verdicts sent.")
        self.image_bytes = self._counter("vsd_image_bytes", "Bytes of images that came in.")
        self.pass_s = self._histogram("vsd_pass_seconds", "Target time of a pass.", SECONDS)
        self.commit_tokens = self._histogram("vsd_commit_tokens", "Tokens in a commit.", TOKENS)
        self.first_s = self._histogram("vsd_first_token_seconds", "Open to first commit.", SECONDS)
        self.answer_s = self._histogram("vsd_answer_seconds", "Open to the last commit.", SECONDS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)


MAX_FOLLOWED = 4096
"""Answers whose times are measured at once; beyond it the longest silent one is not measured further."""

LONGEST_TEXT = 300
"""Characters of a text in a record."""

LEVELS = {"committed": logging.DEBUG, "refused": logging.WARNING}
"""Levels of the records that are not of level info."""

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _ObservedRequest:
    """An open answer: when it began, its length, and the tokens and passes of this cloud."""

    opened_s: float
    strategy: str
    length: int = 0
    tokens: int = 0
    passes: int = 0


def session_id(peer: bytes, answer: int) -> str:
    """Return a short name of one answer of one robot: the same in all records, and not reversible."""
    return f"{sha256(peer).hexdigest()[:10]}-{answer}"


class MessageObserver(MessageTracer):
    """Makes metrics and log records from the messages. `token_bytes` is the packed width of a token id.

    `polled_s` is when the serving loop last polled its link. `logs_content` puts instructions into records;
    images never are.
    """

    def __init__(
        self, metrics: CloudMetrics, clock: Clock, token_bytes: int, logs_content: bool = False
    ) -> None:
        self.metrics = metrics
        self.polled_s = clock.now()
        self._clock = clock
        self._token_bytes = token_bytes
        self._logs_content = logs_content
        self._followed: OrderedDict[tuple[bytes, int], _ObservedRequest] = OrderedDict()

    def polled(self) -> None:
        """Record that the serving loop has polled its link."""
        self.polled_s = self._clock.now()

    def received(self, peer: bytes, num_bytes: int, message: AnyMessage | None) -> None:
        """Count a message of a robot, and log what it means."""
        self._count("in", num_bytes, message)
        match message:
            case Hello():
                self._log("hello", peer, 0, software=message.software[:LONGEST_TEXT])
            case Open():
                self._on_open(peer, message)
            case WireDraft():
                self.metrics.drafted.inc(len(message.tokens) // self._token_bytes)
            case ImageChunk():
                self.metrics.image_bytes.inc(len(message.data))
            case Close():
                if followed := self._followed.pop((peer, message.answer), None):
                    self._log("closed", peer, message.answer, tokens=followed.tokens)

    def sent(self, peer: bytes, num_bytes: int, message: AnyMessage) -> None:
        """Count a message to a robot, and log what it means."""
        self._count("out", num_bytes, message)
        match message:
            case WireCommit():
                self._on_commit(peer, message)
            case WireEarly():
                self.metrics.early.inc()
            case Refused():
                self.metrics.refused.labels(message.reason).inc()
                reason = {"reason": message.reason, "detail": message.detail[:LONGEST_TEXT]}
                self._log("refused", peer, message.answer, **reason)
                self._followed.pop((peer, message.answer), None)
            case Busy():
                self.metrics.refused.labels("busy").inc()
                reason = {"reason": "busy", "detail": message.reason[:LONGEST_TEXT]}
                self._log("refused", peer, message.answer, **reason)
                self._followed.pop((peer, message.answer), None)

    def _count(self, direction: str, num_bytes: int, message: AnyMessage | None) -> None:
        self.metrics.bytes.labels(direction).inc(num_bytes)
        kind = type(message).__name__ if message else "unreadable"
        self.metrics.messages.labels(direction, kind).inc()

    def _on_open(self, peer: bytes, message: Open) -> None:
        key, now_s = (peer, message.answer), self._clock.now()
        strategy = message.strategy if message.strategy in STRATEGIES else "unknown"
        if message.epoch:
            self.metrics.resumed.inc()
        else:
            self.metrics.opened.labels(strategy).inc()
        if key not in self._followed:
            known = len(message.committed) // self._token_bytes
            self._followed[key] = _ObservedRequest(opened_s=now_s, strategy=strategy, length=known)
            while len(self._followed) > MAX_FOLLOWED:
                self._followed.popitem(last=False)
        content = {"instruction": message.instruction[:LONGEST_TEXT]} if self._logs_content else {}
        fields = {"strategy": strategy, "epoch": message.epoch, "image_bytes": message.image_bytes}
        self._log("opened", peer, message.answer, **fields, **content)

    def _on_commit(self, peer: bytes, message: WireCommit) -> None:
        key, pass_s = (peer, message.answer), message.compute_us / 1e6
        if (followed := self._followed.get(key)) is None:
            return
        end = message.start + len(message.tokens) // self._token_bytes
        tokens = end - followed.length
        if tokens <= 0 and not message.finished:
            return  # This commit was sent before, and the link lost it.
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
        self._log("committed", peer, message.answer, **fields)
        if message.finished:
            del self._followed[key]
            self.metrics.finished.inc()
            self.metrics.answer_s.observe(elapsed_s)
            ended = {"tokens": followed.tokens, "rounds": followed.passes, "seconds": round(elapsed_s, 4)}
            self._log("finished", peer, message.answer, **ended, strategy=followed.strategy)

    def _log(self, event: str, peer: bytes, answer: int, **fields: Any) -> None:
        record_fields: Mapping[str, Any] = {"session": session_id(peer, answer), **fields}
        log.log(LEVELS.get(event, logging.INFO), event, extra={"fields": record_fields})


STALL_S = 10.0
"""A serving loop that has not polled its link for so long is not healthy; passes run on another thread."""


class ServiceTelemetry:
    """The telemetry of one service. `gauges` reads its state, on the caller's thread.

    `observer` is to be the tracer of the service's messages.
    """

    def __init__(self, config: CloudConfig, card: ModelCard, clock: Clock) -> None:
        self.card = card
        self._config = config
        self._clock = clock
        self.gauges: Callable[[], Gauges] = Gauges
        self.metrics = CloudMetrics(self._read)
        self.metrics.build.labels(__version__, card.model_id, card.revision).set(1)
        width = TokenPacker(card.vocab_size).width
        self.observer = MessageObserver(self.metrics, clock, width, config.log_content)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve HTTP for the block; yield the URL, "" if HTTP is off. Raises CloudError."""
        if self._config.http == HTTP_OFF:
            yield ""
            return
        registry = self.metrics.registry
        server = health.HealthServer(self._config.http, registry, self.unhealthy_reason, self.unready_reason)
        server.start()
        try:
            yield server.url
        finally:
            server.close()

    def _read(self) -> Gauges:
        return self.gauges()

    def unhealthy_reason(self) -> str:
        """Return why the service is not healthy, or ""."""
        silent_s = self._clock.now() - self.observer.polled_s
        return f"the serving loop has not polled for {silent_s:.0f} s" if silent_s > STALL_S else ""

    def unready_reason(self) -> str:
        """Return why no new answer is accepted, or ""."""
        return self.unhealthy_reason() or ("" if self.gauges().is_ready else "no new answers are taken")
