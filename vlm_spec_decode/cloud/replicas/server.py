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
"""How long a replica that is taken away may go on with the answers that are open there."""
QUIET_S = 1.5
"""How long no replica may have a session before a front that drains has done so."""

log = logging.getLogger(__name__)


class ReplicatedServer(Server):
    """Carries messages between robots and replicas until `stop` is called.

    `scale` may be called from any thread or a signal handler; the rest belongs to the thread that serves.
    """

    def __init__(
        self, link: ServerLink, make_pool: Callable[[Callable[[], None]], ReplicaPool], clock: Clock
    ) -> None:
        super().__init__(link, clock)
        self.front = ReplicaRouter()
        self.figures: dict[int, ReplicaFigures] = {}
        self._past: dict[str, float] = {}
        self._past_dropped: Counter[str] = Counter()
        self._wake_lock = threading.Lock()
        self._is_awake = False
        self._pool = make_pool(self._wake)
        self._end_s: float | None = None
        self._busy_s = clock.now()
        self._wanted = 0
        self._drain_until_s: dict[int, float] = {}

    @property
    def is_stopping(self) -> bool:
        """See `Server.is_stopping`."""
        return self._stopping.is_set() or self.front.is_draining

    @property
    def pool(self) -> ReplicaPool:
        """The replicas."""
        return self._pool

    def gauges(self) -> Gauges:
        """Return the figures of now, over all replicas. From any thread."""
        dropped = Counter(self._past_dropped)
        dropped.update(dict(self.front.dropped))
        states = Counter(dict(self.front.replicas).values())
        told = list(self.figures.values())
        for figures in told:
            dropped.update(figures.dropped)
        sessions = sum(figures.sessions for figures in told)
        ready = bool(states["live"]) and not self.is_stopping
        held = _sum([figures.held for figures in told]) | {"robots_moved": float(self.front.moved)}
        counted = _sum([self._past, *(figures.counted for figures in told)])
        known = {state: states[state] for state in ("starting", "live", "draining")}
        return Gauges(
            sessions=sessions,
            peers=self.front.robots,
            unroutable=self._link.unroutable,
            is_ready=ready,
            dropped=dropped,
            replicas=known,
            more=held,
            counts=counted,
        )

    def trace(self, tracer: MessageTracer) -> None:
        """Tell a tracer of all messages. Before `serve`."""
        self.front.tracer = tracer

    def scale(self, replicas: int) -> None:
        """Serve with so many replicas from now on; those too many end what is open there first."""
        self._wanted = replicas

    def wait_for_first(self, timeout_s: float) -> ModelCard:
        """Return the identity of the target once a replica has loaded it. Before `serve`.

        Raises CloudError if the first replica fails, or none comes up in time.
        """
        self._rescale()
        until_s = self._clock.now() + timeout_s
        while self._clock.now() < until_s:
            for notice in self._pool.taken():
                self._heed(notice)
                if notice.card:
                    return notice.card
                if notice.kind == "failed":
                    raise CloudError(f"no replica could start: {notice.detail}")
            self._clock.sleep(POLL_S)
        raise CloudError(f"no replica was up within {timeout_s:.0f} s: the cluster has no room, or is slow")

    def serve(self) -> None:
        """Serve until stopped; frees everything on the way out."""
        try:
            while not self._stopping.is_set():
                self.front.tracer.polled()
                with self._wake_lock:
                    self._is_awake = False
                batches: defaultdict[int, list[Message]] = defaultdict(list)
                for peer, data in self._link.poll(POLL_S):
                    if routed := self.front.route(peer, data, self._clock.now()):
                        batches[routed[0]] += routed[1]
                for replica, messages in batches.items():
                    self._busy_s = self._clock.now()
                    self._pool.deliver(replica, messages)
                for notice in self._pool.taken():
                    self._heed(notice)
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
        if self.front.is_draining:
            self.stop()
        self.front.is_draining = True

    def _drain(self) -> None:
        if not self.front.is_draining:
            return
        now_s = self._clock.now()
        self._end_s = now_s + DRAIN_S if self._end_s is None else self._end_s
        if self.gauges().sessions:
            self._busy_s = now_s
        # A replica says how many sessions it has twice a second.
        if now_s > self._end_s or now_s - self._busy_s > QUIET_S:
            self.stop()

    def _heed(self, notice: ReplicaNotice) -> None:
        replica = notice.replica
        match notice.kind:
            case "said":
                for peer, data in notice.messages:
                    if self.front.may_say(replica, peer):
                        self._send(peer, data)
                if notice.figures:
                    self.figures[replica] = notice.figures
            case "waiting":
                self._tell(notice, logging.WARNING)
            case "up":
                self._pool.begin_life(replica)
                self.front.up(replica)
                self._tell(notice, logging.INFO)
            case "lost":
                self._forget(replica)
                self.front.lost(replica)
                self._tell(notice, logging.WARNING)
            case "failed" | "gone":
                self._wanted -= notice.kind == "failed"
                self._forget(replica)
                self.front.lost(replica, gone=True)
                self._tell(notice, logging.ERROR if notice.kind == "failed" else logging.INFO)

    def _forget(self, replica: int) -> None:
        """Keep what a replica has counted, or the sums would fall and look like a restart of all."""
        if figures := self.figures.pop(replica, None):
            self._past = _sum([self._past, figures.counted])
            self._past_dropped.update(figures.dropped)

    def _rescale(self) -> None:
        staying = [number for number, state in self.front.replicas.items() if state != "draining"]
        for _ in range(self._wanted - len(staying)):
            self.front.starting(self._pool.add())
        for number in staying[self._wanted :]:
            self.front.draining(number)
            self._drain_until_s[number] = self._clock.now() + DRAIN_S
        for number, until_s in list(self._drain_until_s.items()):
            figures = self.figures.get(number)
            if figures is None or not figures.sessions or self._clock.now() > until_s:
                del self._drain_until_s[number]
                self.front.lost(number, gone=True)
                self._pool.remove(number)

    def _flush(self) -> None:
        said, self.front.outbox = self.front.outbox, []
        for peer, data in said:
            self._send(peer, data)

    def _send(self, peer: bytes, data: bytes) -> None:
        # A replica hands over bytes; this process decodes them here and nowhere else.
        self.front.tracer.sent(peer, len(data), codec.decode(data))
        self._link.send(peer, data)

    def _wake(self) -> None:
        # Several listeners call this; a link takes it from one thread at a time, and once a turn is enough.
        with self._wake_lock:
            if not self._is_awake:
                self._is_awake = True
                self._link.wake()

    def _tell(self, notice: ReplicaNotice, level: int) -> None:
        fields = {"replica": notice.replica, "detail": notice.detail}
        log.log(level, f"replica {notice.kind}", extra={"fields": fields})


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums by name."""
    names = {name for part in parts for name in part}
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
