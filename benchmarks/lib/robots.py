"""A robot of a virtual fleet: the client protocol, a plain decoding loop, and the times of its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TypeAlias

from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.ports import Drafter, Model
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import chain_parents
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.strategies.base import EdgeConfig, draft_chain

IsFirst: TypeAlias = Callable[[Tokens], bool]
"""Whether tokens contain the first action, for which a robot waits before it moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotAnswer:
    """One answer of one robot: its tokens, or its error, and its times."""

    question: int
    tokens: Tokens
    asked_s: float
    first_s: float
    ended_s: float
    error: CloudError | None = None


@dataclass(slots=True)
class VirtualRobot:
    """Asks `questions` one after the other, `think_s` apart. `draft_s` is the time of a drafted token.

    `is_first` is true if the tokens so far contain the first action. Without a `draft` it only receives.
    """

    name: bytes
    hello: Hello
    questions: Seq[tuple[Observation, SamplingParams]]
    is_first: IsFirst
    draft: Model | None = None
    draft_length: int = 4
    draft_s: float = 0.0
    think_s: float = 0.0
    timing: ProtocolTiming = field(default_factory=ProtocolTiming)
    ended_answers: list[RobotAnswer] = field(default_factory=list)
    wake_s: float | None = None
    edge: ClientProtocol = field(init=False)
    _answer: int = 0
    _sequence: Sequence = field(default_factory=Sequence)
    _drafter: Drafter | None = None
    _node: int = 1
    _asked_s: float = 0.0
    _first_s: float | None = None

    def __post_init__(self) -> None:
        self.edge = ClientProtocol(self.hello, self.timing)

    @property
    def is_done(self) -> bool:
        """Whether every question has ended, by an answer or an error."""
        return len(self.ended_answers) == len(self.questions)

    def start(self, now_s: float) -> None:
        """Start the handshake and ask the first question."""
        self.edge.connect(now_s)
        self._ask(now_s)

    def receive(self, data: bytes, now_s: float) -> None:
        """Handle a message of the cloud."""
        self.edge.receive(data, now_s)
        self._handle_events(now_s)

    def tick(self, now_s: float) -> None:
        """Let the protocol send again what may be lost."""
        self.edge.tick(now_s)
        self._handle_events(now_s)

    def outgoing(self) -> Iterator[bytes]:
        """Yield the messages to send."""
        while self.edge.outbox:
            yield self.edge.outbox.popleft()

    def wake(self, now_s: float) -> None:
        """Ask the next question, or send the draft, whose time is over."""
        if len(self.ended_answers) == self._answer and not self.is_done:
            self._ask(now_s)
        elif self._drafter:
            self._submit(self._drafter)

    def _ask(self, now_s: float) -> None:
        observation, params = self.questions[self._answer]
        self._answer += 1
        self._sequence, self._node, self._asked_s, self._first_s = Sequence(), 1, now_s, None
        strategy = "speculative" if self.draft else "autoregressive"
        self.edge.open(AnswerRequest(self._answer, observation, params, strategy), now_s)
        if self.draft:
            self._drafter = self.draft.open(observation)
            self._schedule_draft(now_s)

    def _handle_events(self, now_s: float) -> None:
        while self.edge.events:
            event = self.edge.events.popleft()
            if isinstance(event, CloudError):
                self._end(now_s, event)
            elif isinstance(event, Commit):
                self._sequence.commit(event)
                tokens = self._sequence.tokens
                if self._first_s is None and (self._sequence.finished or self.is_first(tokens)):
                    self._first_s = now_s
                if self._sequence.finished:
                    self._end(now_s, None)
                elif self._drafter:
                    self._schedule_draft(now_s)

    def _schedule_draft(self, now_s: float) -> None:
        """Set `wake_s` to when a draft that begins now is done."""
        self.wake_s = now_s + self.draft_s * self.draft_length

    def _submit(self, drafter: Drafter) -> None:
        config = EdgeConfig(
            answer=self._answer, params=self.questions[self._answer - 1][1], draft_length=self.draft_length
        )
        chain = draft_chain(drafter, self._sequence.tokens, config)
        parents = chain_parents(self._node, len(chain))
        self.edge.submit(DraftMessage(self._answer, 0, len(self._sequence), self._node, chain, parents))
        self._node += len(chain)

    def _end(self, now_s: float, error: CloudError | None) -> None:
        first_s = now_s if self._first_s is None else self._first_s
        self.ended_answers.append(
            RobotAnswer(
                question=self._answer - 1,
                tokens=self._sequence.tokens,
                asked_s=self._asked_s,
                first_s=first_s,
                ended_s=now_s,
                error=error,
            )
        )
        self.edge.close(now_s)
        if self._drafter:
            self._drafter.close()
            self._drafter = None
        self.wake_s = now_s + self.think_s
