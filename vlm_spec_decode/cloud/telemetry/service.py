"""Log, metrics and health of a running service. The service itself does not depend on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vlm_spec_decode import __version__
from vlm_spec_decode.cloud.config import HTTP_OFF, CloudConfig
from vlm_spec_decode.cloud.telemetry import health
from vlm_spec_decode.cloud.telemetry.logs import set_up_logging, take_down_logging
from vlm_spec_decode.cloud.telemetry.message_observer import MessageObserver, ObservedLink
from vlm_spec_decode.cloud.telemetry.metrics import CloudMetrics, Gauges
from vlm_spec_decode.core.ports import Clock, ModelCard
from vlm_spec_decode.protocol.codec import TokenPacker
from vlm_spec_decode.transport.in_process import ServerLink

STALL_S = 10.0
"""A serving loop that has not polled its link for so long is not healthy; passes run on another thread."""


class ServiceTelemetry:
    """The telemetry of one service. `gauges` reads its state, on the caller's thread."""

    def __init__(self, config: CloudConfig, card: ModelCard, link: ServerLink, clock: Clock) -> None:
        self.card = card
        self._config = config
        self._clock = clock
        self.gauges: Callable[[], Gauges] = Gauges
        self.metrics = CloudMetrics(self._read)
        self.metrics.build.labels(__version__, card.model_id, card.revision).set(1)
        width = TokenPacker(card.vocab_size).width
        watch = MessageObserver(self.metrics, clock, width, config.log_content)
        self.link = ObservedLink(link, watch, clock)

    @contextmanager
    def around(self) -> Iterator[str]:
        """Log and answer over HTTP for the block; gives the URL, "" if HTTP is off. Raises CloudError."""
        handler = set_up_logging(self._config.log_format, self._config.log_level)
        try:
            if self._config.http == HTTP_OFF:
                yield ""
                return
            registry = self.metrics.registry
            server = health.HealthServer(self._config.http, registry, self.trouble, self.unready)
            server.start()
            try:
                yield server.url
            finally:
                server.close()
        finally:
            take_down_logging(handler)

    def _read(self) -> Gauges:
        return self.gauges()

    def trouble(self) -> str:
        """Return why the service is not healthy, or ""."""
        silent_s = self._clock.now() - self.link.polled_s
        return f"the serving loop has not turned for {silent_s:.0f} s" if silent_s > STALL_S else ""

    def unready(self) -> str:
        """Return why no new answer is taken, or ""."""
        return self.trouble() or ("" if self.gauges().is_ready else "no new answers are taken")
