"""Synthetic robots: the edge's protocol without camera, draft model or thread, many to one socket loop.

A robot asks one question after the other over a socket of its own, as a real one does. It drafts from an
earlier answer to the same question, each token right with a given probability, so that a draft costs nothing
here and the cloud is what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.actions.parser import ActionParser
from vlm_spec_decode.bench.settings import RobotBehaviour
from vlm_spec_decode.core.errors import ActionError, CloudBusy, CloudError, CloudRefused
from vlm_spec_decode.core.ports import Rng, TextCodec
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding.tree import chain_parents
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.transport.connection import Connection

Outcome: TypeAlias = Literal["right", "wrong", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the reference answer of one robot alone if it is known."""

    observation: Observation
    params: SamplingParams
    answer: Tokens = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionResult:
    """The result of one question; times in seconds since it was asked, None if an event did not happen."""

    question: int
    outcome: Outcome
    why: str
    tokens: Tokens
    first_token_s: float | None
    first_action_s: float | None
    total_s: float
    epochs: int


@dataclass(slots=True)
class _Open:
    """The question under way."""

    index: int
    request: AnswerRequest
    known: Tokens
    asked_s: float
    tokens: Tokens = ()
    first_token_s: float | None = None
    first_action_s: float | None = None
    next_node: int = 1
    epochs: int = 0


class LoadRobot:
    """One robot on one connection. `step` is called when something has come, and some ten times a second."""

    def __init__(
        self,
        connection: Connection,
        protocol: ClientProtocol,
        manner: RobotBehaviour,
        codec: TextCodec,
        rng: Rng,
    ) -> None:
        self.connection = connection
        self.protocol = protocol
        self.asked: list[QuestionResult] = []
        self.sent_bytes = self.received_bytes = 0
        self.may_ask_s = 0.0
        self._manner = manner
        self._codec = codec
        self._rng = rng
        self._open: _Open | None = None
        self._answers = 0

    @property
    def is_free(self) -> bool:
        """Whether it waits for a question."""
        return self._open is None

    def ask(self, index: int, question: Question, now_s: float) -> None:
        """Ask; what comes of it is added to `asked`."""
        self._answers += 1
        request = AnswerRequest(self._answers, question.observation, question.params, self._manner.strategy)
        self._open = _Open(index, request, question.answer, now_s)
        self.protocol.open(request, now_s)
        self._draft()
        self._send()

    def step(self, now_s: float) -> None:
        """Take what has come, and go on."""
        for data in self.connection.receive():
            self.received_bytes += len(data)
            self.protocol.receive(data, now_s)
        self.protocol.tick(now_s)
        self.protocol.tend(self.connection, now_s)
        while self.protocol.events:
            event = self.protocol.events.popleft()
            if isinstance(event, Commit):
                self._take(event, now_s)
            elif isinstance(event, CloudRefused):
                wait_s = event.retry_after_s if isinstance(event, CloudBusy) else self._manner.back_off_s
                self.may_ask_s = now_s + wait_s * (0.5 + self._rng.random())
                self._end("refused", event.reason, now_s)
            elif isinstance(event, CloudError):
                self._end("failed", type(event).__name__, now_s)
        if self._open:
            self._open.epochs = max(self._open.epochs, self.protocol.epoch)
            if now_s - self._open.asked_s > self._manner.deadline_s:
                self._end("failed", "deadline", now_s)
        self._send()

    def _take(self, commit: Commit, now_s: float) -> None:
        asked = self._open
        if asked is None:
            return
        asked.tokens += commit.tokens
        if asked.first_token_s is None:
            asked.first_token_s = now_s - asked.asked_s
        if asked.first_action_s is None and self._has_action(asked.tokens):
            asked.first_action_s = now_s - asked.asked_s
        if not asked.request.params.ends(len(asked.tokens), asked.tokens[-1] if asked.tokens else -1):
            self._draft()
            return
        right = not asked.known or asked.tokens == asked.known
        self._end("right" if right else "wrong", "", now_s)

    def _end(self, outcome: Outcome, why: str, now_s: float) -> None:
        asked, self._open = self._open, None
        if asked is None:
            return
        self.protocol.close(now_s)
        self.asked.append(
            QuestionResult(
                question=asked.index,
                outcome=outcome,
                why=why,
                tokens=asked.tokens,
                first_token_s=asked.first_token_s,
                first_action_s=asked.first_action_s,
                total_s=now_s - asked.asked_s,
                epochs=asked.epochs,
            )
        )

    def _draft(self) -> None:
        asked, manner = self._open, self._manner
        if asked is None or not manner.drafts:
            return
        at = len(asked.tokens)
        truth = asked.known[at : at + manner.draft_length] or (0,) * manner.draft_length
        tokens = tuple(t if self._rng.random() < manner.acceptance else max(0, t - 1) for t in truth)
        parents = chain_parents(asked.next_node, len(tokens))
        request = asked.request
        self.protocol.submit(
            DraftMessage(request.answer, request.epoch, at, asked.next_node, tokens, parents)
        )
        asked.next_node += len(tokens)

    def _has_action(self, tokens: Tokens) -> bool:
        try:
            return bool(ActionParser().feed(self._codec.decode(tokens)))
        except ActionError:
            return False

    def _send(self) -> None:
        while self.protocol.outbox:
            data = self.protocol.outbox.popleft()
            self.sent_bytes += len(data)
            self.connection.send(data)


@dataclass(slots=True)
class LoadFleet:
    """Robots and the questions that they ask in turn, each robot beginning with another one."""

    robots: Sequence[LoadRobot]
    questions: Sequence[Question]
    limit: int | None = None
    handed: int = 0
    _next: dict[int, int] = field(default_factory=dict)

    def hand_out(self, now_s: float) -> None:
        """Give every free robot its next question, up to `limit` questions in all."""
        for number, robot in enumerate(self.robots):
            if self.limit is not None and self.handed >= self.limit:
                return
            if robot.is_free and now_s >= robot.may_ask_s:
                turn = self._next.get(number, number)
                self._next[number] = turn + 1
                self.handed += 1
                index = turn % len(self.questions)
                robot.ask(index, self.questions[index], now_s)

    @property
    def asked(self) -> list[QuestionResult]:
        """All that came to an end."""
        return [asked for robot in self.robots for asked in robot.asked]

    @property
    def is_idle(self) -> bool:
        """Whether no question is under way."""
        return all(robot.is_free for robot in self.robots)

    @property
    def traffic(self) -> Mapping[str, int]:
        """Bytes of messages in both directions."""
        up, down = (sum(getattr(r, name) for r in self.robots) for name in ("sent_bytes", "received_bytes"))
        return {"uplink_bytes": up, "downlink_bytes": down}
