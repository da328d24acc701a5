"""The cloud's metrics for Prometheus: what is counted, independent of its source and its reader.

Labels are closed sets: content from a peer never becomes a label, because clients could then fill the memory
of the metrics store. No metric contains an image, an instruction or a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlm_spec_decode.cloud.telemetry.counts import ServerCounts

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Bounds of the histograms of time: a tiny model's pass to an answer over a bad link."""

TOKENS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
"""Bounds of the histogram of tokens in a commit."""


@dataclass(frozen=True, slots=True)
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


HELD = {
    "waiting": "Answers that are ready for a pass and wait.",
    "kv_bytes": "Memory of all answers' caches.",
    "image_cache_bytes": "Memory of held images.",
    "robots_moved": "Moves of robots between replicas.",
}
COUNTED = {
    "passes": "Forward passes of the target.",
    "pass_shares": "Shares of answers in passes; by passes it is the mean batch.",
    "pass_wait_seconds": "Time that answers waited for a pass.",
    "batch_splits": "Passes that memory did not hold and that were split.",
    "evictions": "Caches that were dropped and computed again.",
    "image_cache_hits": "Images that were there.",
    "image_cache_misses": "Images that had to come.",
}
"""Figures of the inside, without the prefix `vsd_`: what holds now, and what was counted."""


def inside_of(stats: ServerCounts) -> tuple[dict[str, float], dict[str, float]]:
    """Return what a desk's numbers come to, as `HELD` and as `COUNTED` name them."""
    held = {
        "waiting": stats.waiting,
        "kv_bytes": stats.kv_bytes,
        "image_cache_bytes": stats.image_bytes,
    }
    counted = {
        "passes": stats.passes,
        "pass_shares": stats.shared,
        "pass_wait_seconds": stats.wait_s,
        "batch_splits": stats.splits,
        "evictions": stats.evictions,
        "image_cache_hits": stats.image_hits,
        "image_cache_misses": stats.image_misses,
    }
    return dict(held), dict(counted)


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
        for name, text in HELD.items():
            yield GaugeMetricFamily(f"vsd_{name}", text, value=now.more.get(name, 0))
        for name, text in COUNTED.items():
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
