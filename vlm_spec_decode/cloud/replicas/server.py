"""A server whose targets are replicas: the ROUTER of a pool, with the interface of `CloudServer`."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from vlm_spec_decode.cloud.protocol import MessageTracer
from vlm_spec_decode.cloud.replicas.pool import ReplicaFigures, ReplicaNotice, ReplicaPool
from vlm_spec_decode.cloud.replicas.router import Message, ReplicaRouter
from vlm_spec_decode.cloud.server import Server
from vlm_spec_decode.cloud.telemetry.metrics import Gauges
from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.ports import Clock, ModelCard
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.transport.in_process import ServerLink

POLL_S = 0.1
DRAIN_S = 30.0
"""How long a replica that is to be removed may continue the answers that are open there."""
QUIET_S = 1.5
"""A draining server ends once no replica has had a session for this time."""

log = logging.getLogger(__name__)


class ReplicatedServer(Server):
    """Carries messages between robots and replicas until `stop` is called.

    `scale` may be called from any thread or a signal handler; the rest belongs to the thread that serves.
    """

    def __init__(
        self, link: ServerLink, make_pool: Callable[[Callable[[], None]], ReplicaPool], clock: Clock
    ) -> None:
        super().__init__(link, clock)
        self.router = ReplicaRouter()
        self.figures: dict[int, ReplicaFigures] = {}
        self._removed_counts: dict[str, float] = {}
        self._removed_dropped: Counter[str] = Counter()
        self._wake_lock = threading.Lock()
        self._is_awake = False
        self._pool = make_pool(self._wake)
        self._end_s: float | None = None
        self._busy_s = clock.now()
        self._wanted_replicas = 0
        self._drain_until_s: dict[int, float] = {}

    @property
    def is_stopping(self) -> bool:
        """See `Server.is_stopping`."""
        return self._stopping.is_set() or self.router.is_draining

    @property
    def pool(self) -> ReplicaPool:
        """The replicas."""
        return self._pool

    def gauges(self) -> Gauges:
        """Return the present figures over all replicas. From any thread."""
        dropped = Counter(self._removed_dropped)
        dropped.update(dict(self.router.dropped))
        states = Counter(dict(self.router.replicas).values())
        figures_of_all = list(self.figures.values())
        for figures in figures_of_all:
            dropped.update(figures.dropped)
        sessions = sum(figures.sessions for figures in figures_of_all)
        ready = bool(states["live"]) and not self.is_stopping
        gauge_values = _sum([figures.gauge_values for figures in figures_of_all]) | {
            "robots_moved": float(self.router.moved)
        }
        counter_values = _sum([self._removed_counts, *(figures.counter_values for figures in figures_of_all)])
        known = {state: states[state] for state in ("starting", "live", "draining")}
        return Gauges(
            sessions=sessions,
            peers=self.router.robots,
            unroutable=self._link.unroutable,
            is_ready=ready,
            dropped=dropped,
            replicas=known,
            more=gauge_values,
            counts=counter_values,
        )

    def trace(self, tracer: MessageTracer) -> None:
        """Pass all messages to a tracer from now on. Before `serve`."""
        self.router.tracer = tracer

    def scale(self, replicas: int) -> None:
        """Set the number of replicas; surplus ones end their open answers first."""
        self._wanted_replicas = replicas

    def wait_for_first(self, timeout_s: float) -> ModelCard:
        """Return the identity of the target once a replica has loaded it. Before `serve`.

        Raises CloudError if the first replica fails, or none comes up in time.
        """
        self._rescale()
        until_s = self._clock.now() + timeout_s
        while self._clock.now() < until_s:
            for notice in self._pool.take_notices():
                self._on_notice(notice)
                if notice.card:
                    return notice.card
                if notice.kind == "failed":
                    raise CloudError(f"no replica could start: {notice.detail}")
            self._clock.sleep(POLL_S)
        raise CloudError(f"no replica was up within {timeout_s:.0f} s: the cluster has no room, or is slow")

    def serve(self) -> None:
        """Serve until stopped, then free everything."""
        try:
            while not self._stopping.is_set():
                self.router.tracer.polled()
                with self._wake_lock:
                    self._is_awake = False
                batches: defaultdict[int, list[Message]] = defaultdict(list)
                for peer, data in self._link.poll(POLL_S):
                    if routed := self.router.route(peer, data, self._clock.now()):
                        batches[routed[0]] += routed[1]
                for replica, messages in batches.items():
                    self._busy_s = self._clock.now()
                    self._pool.deliver(replica, messages)
                for notice in self._pool.take_notices():
                    self._on_notice(notice)
                self._rescale()
                self._drain()
                self._flush()
        finally:
            self._pool.close()
            with self._wake_lock:
                self._is_awake = True
                self._link.close()

    def drain(self) -> None:
        """End once no replica has an open session; see `Server.drain`."""
        if self.router.is_draining:
            self.stop()
        self.router.is_draining = True

    def _drain(self) -> None:
        if not self.router.is_draining:
            return
        now_s = self._clock.now()
        if self._end_s is None:
            self._end_s = now_s + DRAIN_S
            self._link.announce_drain()
        if self.gauges().sessions:
            self._busy_s = now_s
        # A replica reports how many sessions it has twice a second.
        if now_s > self._end_s or now_s - self._busy_s > QUIET_S:
            self.stop()

    def _on_notice(self, notice: ReplicaNotice) -> None:
        replica = notice.replica
        match notice.kind:
            case "messages":
                for peer, data in notice.messages:
                    if self.router.is_current_replica(replica, peer):
                        self._send(peer, data)
                if notice.figures:
                    self.figures[replica] = notice.figures
            case "waiting":
                self._log_notice(notice, logging.WARNING)
            case "up":
                self._pool.begin_incarnation(replica)
                self.router.on_up(replica)
                self._log_notice(notice, logging.INFO)
            case "lost":
                self._remove_figures(replica)
                self.router.on_lost(replica)
                self._log_notice(notice, logging.WARNING)
            case "failed" | "removed":
                self._wanted_replicas -= notice.kind == "failed"
                self._remove_figures(replica)
                self.router.on_lost(replica, is_removed=True)
                self._log_notice(notice, logging.ERROR if notice.kind == "failed" else logging.INFO)

    def _remove_figures(self, replica: int) -> None:
        """Add a lost replica's counters to the sums, which otherwise would decrease as after a restart."""
        if figures := self.figures.pop(replica, None):
            self._removed_counts = _sum([self._removed_counts, figures.counter_values])
            self._removed_dropped.update(figures.dropped)

    def _rescale(self) -> None:
        staying = [number for number, state in self.router.replicas.items() if state != "draining"]
        for _ in range(self._wanted_replicas - len(staying)):
            self.router.on_starting(self._pool.add())
        for number in staying[self._wanted_replicas :]:
            self.router.on_draining(number)
            self._drain_until_s[number] = self._clock.now() + DRAIN_S
        for number, until_s in list(self._drain_until_s.items()):
            figures = self.figures.get(number)
            if figures is None or not figures.sessions or self._clock.now() > until_s:
                del self._drain_until_s[number]
                self.router.on_lost(number, is_removed=True)
                self._pool.remove(number)

    def _flush(self) -> None:
        outgoing, self.router.outbox = self.router.outbox, []
        for peer, data in outgoing:
            self._send(peer, data)

    def _send(self, peer: bytes, data: bytes) -> None:
        # A replica delivers bytes; this process decodes them here and nowhere else.
        self.router.tracer.sent(peer, len(data), codec.decode(data))
        self._link.send(peer, data)

    def _wake(self) -> None:
        # Several threads call this; the link allows one at a time, and one call per poll is enough.
        with self._wake_lock:
            if not self._is_awake:
                self._is_awake = True
                self._link.wake()

    def _log_notice(self, notice: ReplicaNotice, level: int) -> None:
        fields = {"replica": notice.replica, "detail": notice.detail}
        log.log(level, f"replica {notice.kind}", extra={"fields": fields})


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of the values of each name."""
    names = {name for part in parts for name in part}
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
