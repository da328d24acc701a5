"""The endpoint's figures for Prometheus. Labels are closed sets: nothing of a request becomes one."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class ServeMetrics:
    """All figures of one endpoint, in a registry of their own. The functions read what holds now."""

    def __init__(
        self, under_way: Callable[[], int], decoding: Callable[[], int], connected: Callable[[], bool]
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = self._counter("vsd_serve_requests", "Requests by path and status.", "path", "status")
        self.left = self._counter("vsd_serve_clients_left", "Clients that went away before the end.")
        self.unverified = self._counter("vsd_serve_unverified", "Answers of the draft alone.")
        self.tokens = self._counter("vsd_serve_tokens", "Tokens of answers.")
        self.drafted = self._counter("vsd_serve_tokens_drafted", "Drafted tokens.")
        self.accepted = self._counter("vsd_serve_tokens_accepted", "Drafted tokens that the target accepted.")
        self.first_s = self._histogram("vsd_serve_first_token_seconds", "Request to the first text.")
        self.answer_s = self._histogram("vsd_serve_answer_seconds", "Request to the end of its answer.")
        self._gauge("vsd_serve_under_way", "Requests under way.", under_way)
        self._gauge("vsd_serve_decoding", "Answers that are decoded now.", decoding)
        self._gauge("vsd_serve_connected", "1 if there is a target.", lambda: float(connected()))

    def page(self) -> bytes:
        """Return what Prometheus reads."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=SECONDS, registry=self._registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(read)
