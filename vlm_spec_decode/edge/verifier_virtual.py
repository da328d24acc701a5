"""A verifier in virtual time: uplink, cloud and downlink as events on the edge's virtual clock.

Durations come from a hardware and a link profile, bytes from the real codec. `poll` runs all events up to the
edge's present time, and `wait` runs on to the next one, so work that overlaps in reality overlaps here,
deterministically. A draft model advances the same clock for the rows that it has not computed before. Several
answers share the link and the cloud's GPU (`edge.virtual_cloud`); to let their edge halves overlap as well,
each must be a process of its own (`edge.open_answers`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import Cancelled, CloudTimeout
from vlm_spec_decode.core.ports import Model, Target, Verifier
from vlm_spec_decode.core.processes import VirtualProcesses
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import NO_TRACER, LinkUsage, Tracer
from vlm_spec_decode.core.types import (
    MAX_OPEN_ANSWERS,
    AnswerRequest,
    Commit,
    DraftMessage,
    Event,
    Hint,
    ImageLimits,
)
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.edge.request_state import CHUNK_BYTES
from vlm_spec_decode.edge.virtual_cloud import VirtualCloud
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import ImageChunk
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport.emulation import OVERHEAD_BYTES, EmulatedDirection, emulated_directions


@dataclass(slots=True)
class VirtualVerifier(Verifier):
    """Implements `Verifier`. `colocated_draft` is the draft model in the cloud; its steps take GPU time.

    `up_bytes`, `down_bytes` and `image_bytes` count the answer's bytes on the wire, with framing, encryption
    and TCP/IP headers. `memory` has the answers given so far, as the cloud's free drafts; None: there are
    none.
    """

    target: Target
    hardware: HardwareProfile
    link: LinkProfile
    clock: VirtualClock
    colocated_draft: Model | None = None
    seed: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    image_bytes: int = 0
    memory: FreeDrafts | None = field(default_factory=FreeDrafts)
    _inbox: deque[Event] = field(default_factory=deque)
    _open: AnswerRequest | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _tracer: Tracer = NO_TRACER
    _beside: VirtualVerifier | None = None
    processes: VirtualProcesses = field(init=False)
    _cloud: VirtualCloud = field(init=False)
    _up: EmulatedDirection = field(init=False)
    _down: EmulatedDirection = field(init=False)
    _packer: codec.TokenPacker = field(init=False)

    def __post_init__(self) -> None:
        self._packer = codec.TokenPacker(self.target.card.vocab_size)
        if other := self._beside:
            self.processes, self._cloud = other.processes, other._cloud
            self._up, self._down = other._up, other._down
        else:
            self.processes = VirtualProcesses(self.clock)
            self._cloud = VirtualCloud(
                self.target, self.hardware, self.processes, self.colocated_draft, memory=self.memory
            )
            self._up, self._down = emulated_directions(self.link, self.seed)

    @property
    def max_answers(self) -> int:
        """How many answers may be open at once, on one link and one GPU."""
        return MAX_OPEN_ANSWERS

    def another(self) -> VirtualVerifier:
        """Return the verifier of one more answer at the same cloud, over the same link."""
        return VirtualVerifier(self.target, self.hardware, self.link, self.clock, _beside=self)

    @property
    def gpu_s(self) -> float:
        """The time that the GPU has worked, for all answers."""
        return self._cloud.gpu_s

    # The port ------------------------------------------------------------------------------------

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        """Start one answer: the request travels, then the image in chunks."""
        self.close()
        self._tracer = tracer
        tracer.opened(request)
        self._cancelled.clear()
        strategy(request.strategy)
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
        deliver = self._while_open(request, self._deliver)
        self._schedule(arrival_s, lambda: self._cloud.open(request, deliver))

    def submit(self, message: Hint) -> None:
        """Send a draft or a correction; it arrives after what was sent before it."""
        request = self._open_request()
        self._tracer.sent(message)
        if isinstance(message, DraftMessage) and not message.tokens:
            return
        arrival_s = self._send_up(len(codec.encode(self._packer.client_message_to_wire(message))))
        self._schedule(arrival_s, lambda: self._cloud.receive(request, message))

    def poll(self) -> Event | None:
        """Return the next event that has arrived by the edge's present time."""
        self._open_request()
        self._check_cancelled()
        self.processes.run_due()
        return self._pop_event() if self._inbox else None

    def wait(self, timeout_s: float) -> Event:
        """Let virtual time pass until an event arrives. Raises CloudTimeout or Cancelled."""
        self._open_request()
        self._tracer.waiting()
        if not self.processes.wait(lambda: bool(self._inbox) or self._cancelled.is_set(), timeout_s):
            raise CloudTimeout(f"no verdict within {timeout_s:.1f} s")
        self._check_cancelled()
        return self._pop_event()

    def cancel(self) -> None:
        """Abandon the answer, in the cloud at once; the next `wait` or `poll` raises Cancelled."""
        self._cancelled.set()
        if request := self._open:
            self.processes.schedule(self.clock.now(), lambda: self._cloud.close(request), request)

    def close(self) -> None:
        """End the answer and free both caches; the other answers go on. Idempotent."""
        if self._open:
            self.processes.drop(self._open)
            self._cloud.close(self._open)
        self._open = None
        self._inbox.clear()

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the target can use."""
        return self.target.card.image_limits

    @property
    def usage(self) -> LinkUsage:
        """Bytes of the answer so far on the wire; the uplink without the image."""
        return LinkUsage(self.up_bytes - self.image_bytes, self.down_bytes, self.image_bytes)

    # The link ------------------------------------------------------------------------------------

    def _send_up(self, num_bytes: int) -> float:
        self.up_bytes += num_bytes + OVERHEAD_BYTES
        return self._up.arrival(num_bytes, self.clock.now())

    def _deliver(self, event: Event) -> None:
        if isinstance(event, Commit):
            num_bytes = len(codec.encode(self._packer.commit_to_wire(event)))
        else:
            num_bytes = len(codec.encode(codec.early_exit_to_wire(event)))
        self.down_bytes += num_bytes + OVERHEAD_BYTES
        arrival_s = self._down.arrival(num_bytes, self.processes.event_s)
        self._schedule(arrival_s, lambda: self._inbox.append(event))

    def _schedule(self, time_s: float, action: Callable[[], None]) -> None:
        self.processes.schedule(time_s, action, self._open)

    def _while_open(self, request: AnswerRequest, send: Callable[[Event], None]) -> Callable[[Event], None]:
        return lambda event: send(event) if self._open is request else None

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
