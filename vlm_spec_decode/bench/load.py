"""`vsd load`: synthetic robots on a cloud of this machine, many to one socket loop.

First one robot asks every question alone: its answers are the reference for all later ones. Then all robots
ask at once, each its next question as soon as the last is answered. Bounded in robots, time and questions;
the address must be a loopback one.

A robot is the edge's protocol without camera, draft model or thread. A robot asks one question after the
other over a socket of its own, as a real one does. It drafts from an earlier answer to the same question,
each token right with a given probability. So a draft costs no time here, and only the cloud is measured.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import zmq

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.actions.parser import ActionParser
from vlm_spec_decode.bench.pairs import recorded_prompts
from vlm_spec_decode.bench.settings import LoadConfig, RobotBehaviour
from vlm_spec_decode.core.errors import (
    ActionError,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudTimeout,
    ConfigError,
)
from vlm_spec_decode.core.ports import Clock, Rng, TextCodec
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
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.transport.connection import Connection
from vlm_spec_decode.transport.keys import EdgeKeys, edge_keys

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
    """One robot on one connection. Call `update` when messages have arrived, and some ten times a second."""

    def __init__(
        self,
        connection: Connection,
        protocol: ClientProtocol,
        behaviour: RobotBehaviour,
        codec: TextCodec,
        rng: Rng,
    ) -> None:
        self.connection = connection
        self.protocol = protocol
        self.asked: list[QuestionResult] = []
        self.sent_bytes = self.received_bytes = 0
        self.next_question_s = 0.0
        self._behaviour = behaviour
        self._codec = codec
        self._rng = rng
        self._open: _Open | None = None
        self._answers = 0

    @property
    def is_free(self) -> bool:
        """Whether it waits for a question."""
        return self._open is None

    def ask(self, index: int, question: Question, now_s: float) -> None:
        """Ask a question; its result is added to `asked`."""
        self._answers += 1
        request = AnswerRequest(
            self._answers, question.observation, question.params, self._behaviour.strategy
        )
        self._open = _Open(index, request, question.answer, now_s)
        self.protocol.open(request, now_s)
        self._draft()
        self._send()

    def update(self, now_s: float) -> None:
        """Handle the messages that have arrived, and send what is due."""
        for data in self.connection.receive():
            self.received_bytes += len(data)
            self.protocol.receive(data, now_s)
        self.protocol.tick(now_s)
        self.protocol.maintain(self.connection, now_s)
        while self.protocol.events:
            event = self.protocol.events.popleft()
            if isinstance(event, Commit):
                self._on_commit(event, now_s)
            elif isinstance(event, CloudRefused):
                wait_s = event.retry_after_s if isinstance(event, CloudBusy) else self._behaviour.back_off_s
                self.next_question_s = now_s + wait_s * (0.5 + self._rng.random())
                self._end("refused", event.reason, now_s)
            elif isinstance(event, CloudError):
                self._end("failed", type(event).__name__, now_s)
        if self._open:
            self._open.epochs = max(self._open.epochs, self.protocol.epoch)
            if now_s - self._open.asked_s > self._behaviour.deadline_s:
                self._end("failed", "deadline", now_s)
        self._send()

    def _on_commit(self, commit: Commit, now_s: float) -> None:
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
        asked, behaviour = self._open, self._behaviour
        if asked is None or not behaviour.drafts:
            return
        at = len(asked.tokens)
        reference = asked.known[at : at + behaviour.draft_length] or (0,) * behaviour.draft_length
        tokens = tuple(t if self._rng.random() < behaviour.acceptance else max(0, t - 1) for t in reference)
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
    assigned: int = 0
    _next: dict[int, int] = field(default_factory=dict)

    def assign_questions(self, now_s: float) -> None:
        """Give every free robot its next question, up to `limit` questions in all."""
        for number, robot in enumerate(self.robots):
            if self.limit is not None and self.assigned >= self.limit:
                return
            if robot.is_free and now_s >= robot.next_question_s:
                turn = self._next.get(number, number)
                self._next[number] = turn + 1
                self.assigned += 1
                index = turn % len(self.questions)
                robot.ask(index, self.questions[index], now_s)

    @property
    def asked(self) -> list[QuestionResult]:
        """Results of all ended questions."""
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


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Result of a run: all questions, their time, bytes, and the reference answers."""

    asked: Sequence[QuestionResult]
    elapsed_s: float
    traffic: dict[str, int]
    reference: Sequence[Tokens]

    def report(self) -> dict[str, Any]:
        """Return the figures; goodput counts right answers only."""
        counts = Counter(asked.outcome for asked in self.asked)
        right = [asked for asked in self.asked if asked.outcome == "right"]
        reasons = Counter(asked.why for asked in self.asked if asked.why)
        tokens = sum(len(asked.tokens) for asked in right)
        return {
            "asked": len(self.asked),
            **{name: counts[name] for name in ("right", "wrong", "refused", "failed")},
            "reasons": dict(reasons),
            "resumed": sum(asked.epochs > 0 for asked in self.asked),
            "seconds": round(self.elapsed_s, 6),
            "goodput_answers_per_s": round(len(right) / self.elapsed_s, 3),
            "goodput_tokens_per_s": round(tokens / self.elapsed_s, 2),
            "first_token_s": quantiles([a.first_token_s for a in right]),
            "first_action_s": quantiles([a.first_action_s for a in right]),
            "total_s": quantiles([a.total_s for a in right]),
            **self.traffic,
        }


def quantiles(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return median, 95 % and 99 % quantile of the values that are not None, None without any."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    found = np.quantile(there, (0.5, 0.95, 0.99))
    return {name: round(float(value), 5) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


def format_report(report: Mapping[str, Any]) -> str:
    """Return a report in a few lines."""
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(report["reasons"].items()))
    lines = [
        f"{report['right']} right, {report['wrong']} wrong, {report['refused']} refused, {report['failed']} "
        f"failed of {report['asked']} in {report['seconds']} s" + (f" ({reasons})" if reasons else ""),
        f"goodput {report['goodput_answers_per_s']} answers/s, {report['goodput_tokens_per_s']} tokens/s",
    ]
    for name in ("first_token_s", "first_action_s", "total_s"):
        if found := report[name]:
            times = ", ".join(f"{quantile} {1000 * value:.0f} ms" for quantile, value in found.items())
            lines.append(f"{name.removesuffix('_s').replace('_', ' ')}: {times}")
    return "\n".join(lines)


QUESTIONS = 8
"""Recorded questions that the robots ask in turn."""

TICK_S = 0.05
WATCHED_ROBOTS = 256
"""With more robots a damaged connection is detected by its silence alone, which saves two sockets each."""

HANDSHAKE_S = 60.0
"""Time-out of many handshakes at once."""


@dataclass(frozen=True, slots=True)
class DraftIdentity:
    """The robots' draft model as the cloud sees it: its Hello, and its tokenizer."""

    hello: Hello
    codec: TextCodec


def load(
    config: LoadConfig,
    questions: Sequence[Question],
    identity: DraftIdentity,
    clock: Clock,
    on_turn: Callable[[LoadFleet], None] | None = None,
) -> LoadRun:
    """Ask with one robot, then with all at once. `on_turn` is called after every turn of the loop.

    Raises CloudUnreachable or CloudRefused if the cloud does not serve even one robot, CloudTimeout.
    """
    _allow_sockets(config.robots)
    keys = edge_keys(config.keys) if config.keys else None
    with ExitStack() as stack:
        context = zmq.Context()
        stack.callback(context.destroy, 0)
        context.set(zmq.MAX_SOCKETS, 6 * config.robots + 64)  # one, or for a moment two and their watchers
        alone = replace(config, robots=1, behaviour=replace(config.behaviour, strategy="autoregressive"))
        first = _fleet(alone, context, keys, identity, [replace(q, answer=()) for q in questions])
        first.limit = len(questions)
        _run_robots(first, clock, alone.behaviour.deadline_s * len(questions))
        reference = [asked.tokens for asked in sorted(first.asked, key=lambda asked: asked.question)]
        for asked in first.asked:
            if asked.outcome != "right":
                raise CloudTimeout(f"one robot alone was not answered: {asked.outcome} {asked.why}")
        known = [replace(q, answer=answer) for q, answer in zip(questions, reference, strict=True)]
        fleet = _fleet(config, context, keys, identity, known)
        _shake_hands(fleet, clock)
        fleet.limit = config.questions
        began_s = clock.now()
        _run_robots(fleet, clock, config.seconds, on_turn)
        return LoadRun(fleet.asked, clock.now() - began_s, dict(fleet.traffic), reference)


def shipped_identity(draft: str = "", max_tokens: int = 64) -> tuple[DraftIdentity, list[Question]]:
    """Return the identity of this draft, by default the shipped one, and the recorded questions."""
    from vlm_spec_decode.edge.factory import load_draft, make_hello
    from vlm_spec_decode.edge.settings import EdgeSettings

    settings = EdgeSettings(draft=draft, max_tokens=max_tokens)
    model = load_draft(settings)
    params = SamplingParams(max_tokens=max_tokens, stop_ids=model.codec.stop_ids)
    questions = [Question(observation, params) for observation in recorded_prompts(QUESTIONS)]
    return DraftIdentity(make_hello(model.card, language()), model.codec), questions


def _fleet(
    config: LoadConfig,
    context: zmq.Context[Any],
    keys: EdgeKeys | None,
    identity: DraftIdentity,
    questions: Sequence[Question],
) -> LoadFleet:
    handshake_s = HANDSHAKE_S if config.robots > 1 else config.give_up_s
    welcome_timeout_s = (
        2.0 if config.robots <= WATCHED_ROBOTS else handshake_s
    )  # so many greet slowly on any line
    timing = ProtocolTiming(
        give_up_s=config.give_up_s,
        handshake_s=handshake_s,
        busy_s=config.behaviour.busy_s,
        welcome_timeout_s=welcome_timeout_s,
    )
    robots = []
    for number in range(config.robots):
        rng = np.random.default_rng((config.seed, number))
        protocol = ClientProtocol(identity.hello, timing)
        connection = Connection(context, config.cloud, keys, watched=config.robots <= WATCHED_ROBOTS)
        robots.append(LoadRobot(connection, protocol, config.behaviour, identity.codec, rng))
    return LoadFleet(robots, questions)


def _shake_hands(fleet: LoadFleet, clock: Clock) -> None:
    for robot in fleet.robots:
        robot.protocol.connect(clock.now())
    until_s = clock.now() + HANDSHAKE_S
    while any(robot.protocol.welcome is None for robot in fleet.robots):
        for robot in fleet.robots:
            robot.update(clock.now())
        if clock.now() > until_s:
            missing = sum(robot.protocol.welcome is None for robot in fleet.robots)
            raise CloudTimeout(f"{missing} of {len(fleet.robots)} robots were not welcomed")
        clock.sleep(0.005)


def _run_robots(
    fleet: LoadFleet, clock: Clock, seconds: float, on_turn: Callable[[LoadFleet], None] | None = None
) -> None:
    """Let the fleet ask until time or questions are used up, then wait for what is under way."""
    if any(robot.protocol.welcome is None for robot in fleet.robots):
        _shake_hands(fleet, clock)
    poller, by_socket = _poller(fleet)
    until_s, tick_s = clock.now() + seconds, clock.now()
    while True:
        now_s = clock.now()
        is_over = now_s > until_s or (fleet.limit is not None and fleet.assigned >= fleet.limit)
        if is_over and fleet.is_idle:
            return
        if not is_over:
            fleet.assign_questions(now_s)
        # Whatever has stepped a robot, here or in `on_turn`: a connection made anew has other sockets.
        if any(robot.connection.has_changed for robot in fleet.robots):
            poller, by_socket = _poller(fleet)
        for socket, _ in poller.poll(round(1000 * TICK_S)):
            by_socket[socket].update(clock.now())
        if clock.now() - tick_s >= TICK_S:
            tick_s = clock.now()
            for robot in fleet.robots:
                robot.update(tick_s)
        if on_turn:
            on_turn(fleet)


def _poller(fleet: LoadFleet) -> tuple[zmq.Poller, dict[zmq.Socket[bytes], LoadRobot]]:
    """Return what waits for all robots' sockets, and whose they are."""
    poller, by_socket = zmq.Poller(), dict[zmq.Socket[bytes], LoadRobot]()
    for robot in fleet.robots:
        for socket in robot.connection.sockets():
            poller.register(socket, zmq.POLLIN)
            by_socket[socket] = robot
    return poller, by_socket


def _allow_sockets(robots: int) -> None:
    """Raise this process's limit of open files as far as it may. Raises ConfigError if that is too few."""
    needed_files = 4 * robots + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed_files:
        if hard != resource.RLIM_INFINITY and hard < needed_files:
            raise ConfigError(
                f"{robots} robots need {needed_files} open files; the limit is {hard} (ulimit -n)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed_files, hard))
