"""`vsd load`: many synthetic robots against one cloud over real sockets on this machine, and the figures.

First one robot asks every question alone: its answers are the reference for all later ones. Then all robots
ask at once, each its next question as soon as the last is answered. Bounded in robots, time and questions;
the address must be a loopback one.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zmq

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.load_robots import LoadFleet, LoadRobot, Question, QuestionResult
from vlm_spec_decode.bench.pairs import recorded_prompts
from vlm_spec_decode.bench.settings import LoadConfig
from vlm_spec_decode.core.errors import CloudTimeout, ConfigError
from vlm_spec_decode.core.ports import Clock, TextCodec
from vlm_spec_decode.core.types import SamplingParams, Tokens
from vlm_spec_decode.edge.client_protocol import ClientProtocol, ProtocolTiming
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.transport.connection import Connection
from vlm_spec_decode.transport.keys import EdgeKeys, edge_keys


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What came of it: all questions, the time that they took, bytes, and the truth they were held to."""

    asked: Sequence[QuestionResult]
    elapsed_s: float
    traffic: dict[str, int]
    truth: Sequence[Tokens]

    def report(self) -> dict[str, Any]:
        """Return the figures: goodput counts right answers only."""
        counts = Counter(asked.outcome for asked in self.asked)
        right = [asked for asked in self.asked if asked.outcome == "right"]
        reasons = Counter(asked.why for asked in self.asked if asked.why)
        tokens = sum(len(asked.tokens) for asked in right)
        return {
            "asked": len(self.asked),
            **{name: counts[name] for name in ("right", "wrong", "refused", "failed")},
            "reasons": dict(reasons),
            "resumed": sum(asked.epochs > 0 for asked in self.asked),
            "seconds": round(self.elapsed_s, 3),
            "goodput_answers_per_s": round(len(right) / self.elapsed_s, 3),
            "goodput_tokens_per_s": round(tokens / self.elapsed_s, 2),
            "first_token_s": quantiles([a.first_token_s for a in right]),
            "first_action_s": quantiles([a.first_action_s for a in right]),
            "total_s": quantiles([a.total_s for a in right]),
            **self.traffic,
        }


def quantiles(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return median, 95 % and 99 % quantile of the values that there are, None without any."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    found = np.quantile(there, (0.5, 0.95, 0.99))
    return {name: round(float(value), 5) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


def told(report: Mapping[str, Any]) -> str:
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
"""Of more robots a damaged connection is found by its silence alone, which saves two sockets each."""

HANDSHAKE_S = 60.0
"""Patience for so many handshakes at once."""


@dataclass(frozen=True, slots=True)
class DraftIdentity:
    """What the robots' tokens mean: the handshake of their draft, and its tokenizer."""

    hello: Hello
    codec: TextCodec


def load(
    config: LoadConfig,
    questions: Sequence[Question],
    speech: DraftIdentity,
    clock: Clock,
    on_turn: Callable[[LoadFleet], None] | None = None,
) -> LoadRun:
    """Ask alone, then all at once. `on_turn` is called after every turn of the loop: faults go there.

    Raises CloudUnreachable or CloudRefused if the cloud does not serve even one robot, CloudTimeout.
    """
    _allow_sockets(config.robots)
    keys = edge_keys(config.keys) if config.keys else None
    with ExitStack() as stack:
        context = zmq.Context()
        stack.callback(context.destroy, 0)
        context.set(zmq.MAX_SOCKETS, 6 * config.robots + 64)  # one, or for a moment two and their watchers
        alone = replace(config, robots=1, manner=replace(config.manner, strategy="autoregressive"))
        first = _fleet(alone, context, keys, speech, [replace(q, answer=()) for q in questions])
        first.limit = len(questions)
        _turn(first, clock, alone.manner.deadline_s * len(questions))
        truth = [asked.tokens for asked in sorted(first.asked, key=lambda asked: asked.question)]
        for asked in first.asked:
            if asked.outcome != "right":
                raise CloudTimeout(f"one robot alone was not answered: {asked.outcome} {asked.why}")
        known = [replace(q, answer=answer) for q, answer in zip(questions, truth, strict=True)]
        fleet = _fleet(config, context, keys, speech, known)
        _shake_hands(fleet, clock)
        fleet.limit = config.questions
        began_s = clock.now()
        _turn(fleet, clock, config.seconds, on_turn)
        return LoadRun(fleet.asked, clock.now() - began_s, dict(fleet.traffic), truth)


def shipped_speech(draft: str = "", max_tokens: int = 64) -> tuple[DraftIdentity, list[Question]]:
    """Return what robots with this draft, by default the shipped one, say, and the recorded questions."""
    from vlm_spec_decode.edge.factory import hello_of, load_draft
    from vlm_spec_decode.edge.settings import EdgeSettings

    settings = EdgeSettings(draft=draft, max_tokens=max_tokens)
    model = load_draft(settings)
    params = SamplingParams(max_tokens=max_tokens, stop_ids=model.codec.stop_ids)
    questions = [Question(observation, params) for observation in recorded_prompts(QUESTIONS)]
    return DraftIdentity(hello_of(model.card, language()), model.codec), questions


def _fleet(
    config: LoadConfig,
    context: zmq.Context[Any],
    keys: EdgeKeys | None,
    speech: DraftIdentity,
    questions: Sequence[Question],
) -> LoadFleet:
    handshake_s = HANDSHAKE_S if config.robots > 1 else config.give_up_s
    greet_s = 2.0 if config.robots <= WATCHED_ROBOTS else handshake_s  # so many greet slowly on any line
    timing = ProtocolTiming(
        give_up_s=config.give_up_s, handshake_s=handshake_s, busy_s=config.manner.busy_s, greet_s=greet_s
    )
    robots = []
    for number in range(config.robots):
        rng = np.random.default_rng((config.seed, number))
        protocol = ClientProtocol(speech.hello, timing)
        connection = Connection(context, config.cloud, keys, watched=config.robots <= WATCHED_ROBOTS)
        robots.append(LoadRobot(connection, protocol, config.manner, speech.codec, rng))
    return LoadFleet(robots, questions)


def _shake_hands(fleet: LoadFleet, clock: Clock) -> None:
    for robot in fleet.robots:
        robot.protocol.connect(clock.now())
    until_s = clock.now() + HANDSHAKE_S
    while any(robot.protocol.welcome is None for robot in fleet.robots):
        for robot in fleet.robots:
            robot.step(clock.now())
        if clock.now() > until_s:
            missing = sum(robot.protocol.welcome is None for robot in fleet.robots)
            raise CloudTimeout(f"{missing} of {len(fleet.robots)} robots were not welcomed")
        clock.sleep(0.005)


def _turn(
    fleet: LoadFleet, clock: Clock, seconds: float, on_turn: Callable[[LoadFleet], None] | None = None
) -> None:
    """Let the fleet ask until time or questions are used up, then wait for what is under way."""
    if any(robot.protocol.welcome is None for robot in fleet.robots):
        _shake_hands(fleet, clock)
    poller, by_socket = _poller(fleet)
    until_s, tick_s = clock.now() + seconds, clock.now()
    while True:
        now_s = clock.now()
        is_over = now_s > until_s or (fleet.limit is not None and fleet.handed >= fleet.limit)
        if is_over and fleet.is_idle:
            return
        if not is_over:
            fleet.hand_out(now_s)
        # Whatever has stepped a robot, here or in `on_turn`: a connection made anew has other sockets.
        if any(robot.connection.has_changed for robot in fleet.robots):
            poller, by_socket = _poller(fleet)
        for socket, _ in poller.poll(round(1000 * TICK_S)):
            by_socket[socket].step(clock.now())
        if clock.now() - tick_s >= TICK_S:
            tick_s = clock.now()
            for robot in fleet.robots:
                robot.step(tick_s)
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
    wanted = 4 * robots + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ConfigError(f"{robots} robots need {wanted} open files; the limit is {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
