"""A verifier in this process: the target beside the drafter, no network between.

`wait` runs the next pass on the calling thread, so that what a test or `vsd ask` without a cloud sees is
exactly the session logic of the server. Several answers share the models, one pass at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import AbstractContextManager

from vlm_spec_decode.core.errors import Cancelled, CloudTimeout
from vlm_spec_decode.core.ports import Clock, Model, Target, Verifier
from vlm_spec_decode.core.trace import NO_TRACER, Tracer
from vlm_spec_decode.core.types import MAX_OPEN_ANSWERS, AnswerRequest, Event, Hint, ImageLimits
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.decoding.policy import ColocatedDraft
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.strategies.registry import strategy


class LocalVerifier(Verifier):
    """Implements `Verifier` on a target model in this process; `colocated_draft` drafts beside it."""

    def __init__(self, target: Target, clock: Clock, colocated_draft: Model | None = None) -> None:
        self._target = target
        self._colocated_draft = colocated_draft
        self._clock = clock
        self._session: Session | None = None
        self._events: deque[Event] = deque()
        self._cancelled = threading.Event()
        self._tracer = NO_TRACER
        # One thread at a time may run a model (`models.context`).
        self._models = threading.RLock()
        self._memory = FreeDrafts()

    @property
    def max_answers(self) -> int:
        """How many answers may be open at once, in any threads."""
        return MAX_OPEN_ANSWERS

    @property
    def models(self) -> AbstractContextManager[object]:
        """Held while the target runs, or the draft beside it, which may be the edge's own."""
        return self._models

    def another(self) -> LocalVerifier:
        """Return the verifier of one more answer of the same target."""
        verifier = LocalVerifier(self._target, self._clock, self._colocated_draft)
        verifier._models, verifier._memory = self._models, self._memory
        return verifier

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        """Start one answer; an answer that is still open is closed first."""
        self.close()
        self._tracer = tracer
        tracer.opened(request)
        self._cancelled.clear()
        chosen, colocated_draft = strategy(request.strategy), None
        with self._models:
            if self._colocated_draft and chosen.needs_helper:
                colocated_draft = ColocatedDraft(self._colocated_draft.open(request.observation), self._clock)
            context = self._target.open(request.observation)
        self._session = Session(request, context, chosen.cloud(), colocated_draft, memory=self._memory)

    def submit(self, message: Hint) -> None:
        """Pass the message to the session."""
        self._tracer.sent(message)
        reply = self._open_session().receive(message, self._clock.now())
        if reply:
            self._events.append(reply)

    def poll(self) -> Event | None:
        """Return the next event if a pass has already produced one."""
        return self._pop_event() if self._events else None

    def wait(self, timeout_s: float) -> Event:
        """Run passes until there is an event. Raises CloudTimeout if nothing can come."""
        session = self._open_session()
        self._tracer.waiting()
        while not self._events:
            self._check_cancelled()
            # No draft can come while this thread waits for one, so a wait ends at once.
            plan = session.plan(self._clock.now()) or session.plan(session.wake_s or self._clock.now())
            if plan is None:
                raise CloudTimeout(f"the verifier waits for a draft; {timeout_s:.1f} s would not help")
            with self._models:
                started = self._clock.now()
                plan = session.prepare(plan)
                scores = session.run(plan, self._events.append)
                self._events.append(session.complete(plan, scores, self._clock.now() - started))
        self._check_cancelled()
        return self._pop_event()

    @property
    def shares_processor(self) -> bool:
        """Whoever drafts here delays the next pass."""
        return True

    @property
    def target_bytes(self) -> int:
        """Bytes of weights that a step of the target reads."""
        return self._target.step_bytes

    def cancel(self) -> None:
        """Abandon the answer; the next `wait` raises Cancelled."""
        self._cancelled.set()

    def close(self) -> None:
        """Free the target's context."""
        if self._session is not None:
            with self._models:
                self._session.close()
        self._session = None
        self._events.clear()

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the target can use."""
        return self._target.card.image_limits

    def _pop_event(self) -> Event:
        event = self._events.popleft()
        self._tracer.received(event)
        return event

    def _open_session(self) -> Session:
        if self._session is None:
            raise RuntimeError("no answer is open")
        return self._session

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the answer was cancelled")
