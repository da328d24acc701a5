"""A verifier in virtual time: uplink, cloud and downlink as an event queue on the edge's virtual clock.

Tokens come from real models (or tables), durations from a hardware and a link profile, bytes from the real
codec. `poll` runs all events up to the edge's present time, and `wait` runs on to the next one, so work that
overlaps in reality overlaps here, deterministically. A draft model advances the same clock for the rows that
it has not computed before.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import Cancelled, CloudTimeout
from vlm_spec_decode.core.ports import (
    Model,
    Scores,
    Target,
    Verifier,
)
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import NO_TRACER, LinkUsage, Tracer
from vlm_spec_decode.core.types import (
    AnswerRequest,
    DraftMessage,
    EarlyExitVerdict,
    Event,
    Hint,
    ImageLimits,
    Observation,
)
from vlm_spec_decode.decoding.policy import ColocatedDraft, PassPlan
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.edge.request_state import CHUNK_BYTES
from vlm_spec_decode.models.paced import paced_copy, profile_costs
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import ImageChunk
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport.emulation import OVERHEAD_BYTES, EmulatedDirection, emulated_directions


@dataclass(slots=True)
class _VirtualRequest:
    """One answer in the virtual cloud, from the arrival of its Open on."""

    session: Session
    is_prefilled: bool = False
    is_running: bool = False


@dataclass(slots=True)
class VirtualVerifier(Verifier):
    """Implements `Verifier`. `colocated_draft` is the draft model in the cloud; its steps take GPU time.

    `gpu_s` adds up the GPU's time. `up_bytes`, `down_bytes` and `image_bytes` count the bytes on the wire,
    with framing, encryption and TCP/IP headers.
    """

    target: Target
    hardware: HardwareProfile
    link: LinkProfile
    clock: VirtualClock
    colocated_draft: Model | None = None
    seed: int = 0
    gpu_s: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    image_bytes: int = 0
    _now_s: float = 0.0
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _inbox: deque[Event] = field(default_factory=deque)
    _answer: _VirtualRequest | None = None
    _open: AnswerRequest | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _tracer: Tracer = NO_TRACER
    _up: EmulatedDirection = field(init=False)
    _down: EmulatedDirection = field(init=False)
    _packer: codec.TokenPacker = field(init=False)

    def __post_init__(self) -> None:
        self._up, self._down = emulated_directions(self.link, self.seed)
        self._packer = codec.TokenPacker(self.target.card.vocab_size)

    # The port ------------------------------------------------------------------------------------

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        """Start one answer: the request travels, then the image in chunks."""
        self.close()
        self._tracer = tracer
        tracer.opened(request)
        self._cancelled.clear()
        policy = strategy(request.strategy).cloud()
        self._open = request
        self.up_bytes = self.down_bytes = self.image_bytes = 0
        message = codec.open_message(
            request, self._packer, request.epoch, request.committed, draft=request.draft
        )
        arrival_s = self._send_up(len(codec.encode(message)))
        image = request.observation.image
        for offset in range(0, len(image.jpeg) if image else 0, CHUNK_BYTES):
            assert image is not None
            chunk = image.jpeg[offset : offset + CHUNK_BYTES]
            num_bytes = len(codec.encode(ImageChunk(request.answer, request.epoch, offset, chunk)))
            self.image_bytes += num_bytes + OVERHEAD_BYTES
            arrival_s = self._send_up(num_bytes)

        def begin() -> None:
            context = self.target.open(request.observation)
            colocated_draft = self._open_colocated_draft(request.observation)
            self._answer = _VirtualRequest(Session(request, context, policy, colocated_draft))
            self._start_next_pass()

        self._schedule(arrival_s, self._while_open(request, begin))

    def submit(self, message: Hint) -> None:
        """Send a draft or a correction; it arrives after what was sent before it."""
        request = self._open_request()
        self._tracer.sent(message)
        if isinstance(message, DraftMessage) and not message.tokens:
            return
        arrival_s = self._send_up(len(codec.encode(self._packer.client_message_to_wire(message))))

        def receive() -> None:
            if self._answer:
                reply = self._answer.session.receive(message, self._now_s)
                if reply:
                    self._deliver(reply, len(codec.encode(self._packer.commit_to_wire(reply))))
                self._start_next_pass()

        self._schedule(arrival_s, self._while_open(request, receive))

    def poll(self) -> Event | None:
        """Return the next event that has arrived by the edge's present time."""
        self._open_request()
        self._check_cancelled()
        self._run_until(self.clock.now())
        return self._pop_event() if self._inbox else None

    def wait(self, timeout_s: float) -> Event:
        """Advance the clock to the next event. Raises CloudTimeout or Cancelled."""
        self._open_request()
        self._tracer.waiting()
        deadline_s = self.clock.now() + timeout_s
        self._run_until(self.clock.now())
        while not self._inbox:
            self._check_cancelled()
            if not self._queue or self._queue[0][0] > deadline_s:
                self.clock.sleep(deadline_s - self.clock.now())
                raise CloudTimeout(f"no verdict within {timeout_s:.1f} s")
            self.clock.sleep(self._queue[0][0] - self.clock.now())
            self._run_until(self.clock.now())
        self._check_cancelled()
        return self._pop_event()

    def cancel(self) -> None:
        """Abandon the answer; the next `wait` or `poll` raises Cancelled."""
        self._cancelled.set()

    def close(self) -> None:
        """End the answer and free both caches. Idempotent."""
        if self._answer:
            self._answer.session.close()
        self._answer = self._open = None
        self._queue.clear()
        self._inbox.clear()

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the target can use."""
        return self.target.card.image_limits

    @property
    def usage(self) -> LinkUsage:
        """Bytes of the answer so far on the wire; the uplink without the image."""
        return LinkUsage(self.up_bytes - self.image_bytes, self.down_bytes, self.image_bytes)

    # The cloud -----------------------------------------------------------------------------------

    def _start_next_pass(self) -> None:
        """Start the next pass if the GPU is free, as the server does, in virtual time."""
        answer = self._answer
        if answer is None or answer.is_running:
            return
        plan = answer.session.plan(self._now_s)
        if plan:
            self._start_pass(answer, plan)
        elif not answer.is_prefilled:
            answer.is_prefilled = answer.is_running = True
            answer.session.context.prefill()
            self._occupy_gpu(self.hardware.prefill_ms / 1000, answer, lambda: None)
        elif answer.session.wake_s is not None:
            wake_s = max(self._now_s, answer.session.wake_s)
            self._schedule(wake_s, self._while_open(answer.session.request, self._start_next_pass))

    def _start_pass(self, answer: _VirtualRequest, plan: PassPlan) -> None:
        session, early = answer.session, list[tuple[EarlyExitVerdict, float]]()
        drafted_s = session.helper.clock.now() if session.helper else 0.0
        plan = session.prepare(plan)
        drafted_s = session.helper.clock.now() - drafted_s if session.helper else 0.0
        layers = self.target.card.num_layers
        scores = session.run(plan, lambda e: early.append((e, e.exit_layer / layers)))
        pass_s = self.hardware.pass_s(len(plan.nodes.tokens), not answer.is_prefilled, len(early))
        answer.is_prefilled = answer.is_running = True
        for verdict, depth in early:
            self._schedule(
                self._now_s + drafted_s + depth * pass_s, self._early_delivery(session.request, verdict)
            )
        duration_s = drafted_s + pass_s
        self._occupy_gpu(duration_s, answer, lambda: self._complete_pass(session, plan, scores, duration_s))

    def _complete_pass(self, session: Session, plan: PassPlan, scores: Scores, duration_s: float) -> None:
        commit = session.complete(plan, scores, duration_s)
        self._deliver(commit, len(codec.encode(self._packer.commit_to_wire(commit))))

    def _early_delivery(self, request: AnswerRequest, early: EarlyExitVerdict) -> Callable[[], None]:
        num_bytes = len(codec.encode(codec.early_exit_to_wire(early)))
        return self._while_open(request, lambda: self._deliver(early, num_bytes))

    def _occupy_gpu(self, duration_s: float, answer: _VirtualRequest, done: Callable[[], None]) -> None:
        def end() -> None:
            answer.is_running = False
            self.gpu_s += duration_s
            done()
            self._start_next_pass()

        self._schedule(self._now_s + duration_s, self._while_open(answer.session.request, end))

    def _open_colocated_draft(self, observation: Observation) -> ColocatedDraft | None:
        if self.colocated_draft is None:
            return None
        clock = VirtualClock()
        context = paced_copy(self.colocated_draft, self.hardware, clock).open(observation)
        return ColocatedDraft(context, clock, profile_costs(self.hardware))

    # The queue -----------------------------------------------------------------------------------

    def _send_up(self, num_bytes: int) -> float:
        self.up_bytes += num_bytes + OVERHEAD_BYTES
        return self._up.arrival(num_bytes, self.clock.now())

    def _deliver(self, event: Event, num_bytes: int) -> None:
        self.down_bytes += num_bytes + OVERHEAD_BYTES
        arrival_s = self._down.arrival(num_bytes, self._now_s)
        self._schedule(arrival_s, lambda: self._inbox.append(event))

    def _schedule(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (time_s, next(self._order), action))

    def _run_until(self, now_s: float) -> None:
        while self._queue and self._queue[0][0] <= now_s:
            self._now_s, _, action = heapq.heappop(self._queue)
            action()
        self._now_s = now_s

    def _while_open(self, request: AnswerRequest, action: Callable[[], None]) -> Callable[[], None]:
        return lambda: action() if self._open is request else None

    def _pop_event(self) -> Event:
        event = self._inbox.popleft()
        self._tracer.received(event)
        return event

    def _open_request(self) -> AnswerRequest:
        if self._open is None:
            raise RuntimeError("no answer is open")
        return self._open

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the answer was cancelled")
