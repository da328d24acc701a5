"""Many robots on one target, in virtual time with the shipped models: the figures of batching."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from figures import Figure
from lib.fleet import BatchCost, Fleet
from lib.robots import RobotAnswer, VirtualRobot

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.actions.parser import ActionParser
from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.ports import Model, ScoreRequest
from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.edge.factory import make_hello
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.evaluate import questions

FRAMES = 32
"""Held-out questions with a frame each, asked again and again."""

TIE = 1e-4
ROBOTS = 16
PROFILE = "go2_a100"


class Room:
    """The shipped models constrained to the action language, and robots that ask them."""

    def __init__(self) -> None:
        self.plain: VlmModel = load_model(shipped("target"))
        draft = load_model(shipped("draft"))
        self.target: Model = constrained(self.plain, self.plain.codec, language())
        self.draft: Model = constrained(draft, draft.codec, language())
        self.hello = make_hello(draft.card, language())
        frames = questions(EvaluateConfig(Path(), None, frames=FRAMES))
        self.asked = [question.observation for question in frames]
        self.cost = BatchCost(load_hardware(PROFILE))
        self.link = load_link("go2_paper")

    def robots(
        self, count: int, answers: int, speculative: float = 0.0, temperature: float = 0.0
    ) -> list[VirtualRobot]:
        """Return `count` robots, of which `speculative` (a share) draft."""
        found = []
        for index in range(count):
            asked = [self._question(7 * index + n, temperature) for n in range(answers)]
            drafts = (index + 0.5) / count < speculative
            name, seen = b"robot %d" % index, self.has_action
            own = self.draft if drafts else None
            draft_s = self.cost.hardware.draft_s(1)
            timing = ProtocolTiming(give_up_s=600.0, busy_s=1e9)
            found.append(VirtualRobot(name, self.hello, asked, seen, own, 4, draft_s, timing=timing))
        return found

    def fleet(self, robots: list[VirtualRobot], **limits: int) -> Fleet:
        """Return a fleet on the profile of the Go2 and an A100."""
        return Fleet(self.target, robots, self.cost, self.link, language().digest, ServerLimits(**limits))

    def has_action(self, tokens: Tokens) -> bool:
        """Return whether tokens hold a whole action."""
        try:
            return bool(ActionParser().feed(self.plain.codec.decode(tokens)))
        except ActionParseError:
            return True

    def _question(self, number: int, temperature: float) -> tuple[Observation, SamplingParams]:
        params = SamplingParams(temperature, max_tokens=64, stop_ids=self.plain.codec.stop_ids, seed=number)
        return self.asked[number % len(self.asked)], params


@cache
def room() -> Room:
    """Return the setting that all parts use."""
    return Room()


def equal(room: Room, robots: int) -> list[Figure]:
    """Share of robots whose answer in a batch equals the target's own answer."""
    fleet = room.fleet(room.robots(robots, 1, 0.5, temperature=0.7), sessions=robots)
    fleet.run(spread_s=1.0)
    same, ties = 0, 0
    for robot in fleet.robots:
        (said,) = robot.ended_answers
        is_same, tied = _is_own(room.target, *robot.questions[0], said)
        same, ties = same + is_same, ties + tied
    stats = fleet.protocol.stats
    batch = stats.batched_answers / stats.passes
    note = f"half of them drafting, {batch:.1f} answers a pass; {ties} ended at a near tie"
    return [Figure("fleet_same_tokens", same / robots, 1.0, "at least", f"{robots} robots, {note}")]


def _is_own(
    target: Model, observation: Observation, params: SamplingParams, said: RobotAnswer
) -> tuple[bool, bool]:
    """Return whether an answer is the target's own, and whether the comparison ended at a near tie."""
    context, own = target.open(observation), Tokens()
    while len(own) < params.max_tokens and (not own or own[-1] not in params.stop_ids):
        logits = context.score(own)[0]
        token = pick(logits, len(own), params)
        if len(own) >= len(said.tokens) or said.tokens[len(own)] != token:
            logits[token] -= TIE
            tied = len(own) < len(said.tokens) and pick(logits, len(own), params) == said.tokens[len(own)]
            return tied, tied
        own += (token, *context.forced((*own, token)))
    return own[: params.max_tokens] == said.tokens, False


def batched(room: Room, answers: int) -> list[Figure]:
    """Throughput of 16 robots in shared passes over one by one, beside what the curve allows."""
    gains = {}
    for kind, speculative in (("listening", 0.0), ("drafting", 1.0)):
        together = room.fleet(room.robots(ROBOTS, answers, speculative))
        one_by_one = room.fleet(room.robots(ROBOTS, answers, speculative), batch=1)
        gains[kind] = _tokens_per_s(together, answers) / _tokens_per_s(one_by_one, answers)
    allowed = room.cost.gain(ROBOTS)
    note = (
        f"{ROBOTS} robots, {ROBOTS * answers // 2} answers, {PROFILE}; all of them drafting, stop and wait: "
    )
    note += f"{gains['drafting']:.2f}; this CPU: {_cpu_gain(room):.2f}"
    return [
        Figure("batched_over_one_by_one", gains["listening"], 4.0, "at least", note),
        Figure(
            "batched_of_allowed", gains["listening"] / allowed, 0.9, "at least", f"it allows {allowed:.2f}"
        ),
    ]


def _tokens_per_s(fleet: Fleet, answers: int) -> float:
    """Return tokens a second while every robot has questions left."""
    ended_s = fleet.run(answers=len(fleet.robots) * answers // 2)
    return fleet.protocol.stats.tokens / ended_s


def _cpu_gain(room: Room, rounds: int = 12) -> float:
    """Return the throughput of 16 real contexts in one real pass over one by one, on this machine."""
    rng = np.random.default_rng(0)
    seconds = {}
    for kind in ("batch", "single"):
        contexts = [room.plain.open(room._question(n, 0.0)[0]) for n in range(ROBOTS)]
        prefixes: list[Tokens] = [()] * ROBOTS
        room.plain.score_batch([ScoreRequest(context, ()) for context in contexts])
        spent = []
        for _ in range(rounds):
            nodes = [tuple(int(t) for t in rng.integers(5, 200, 4)) for _ in contexts]
            rows = zip(contexts, prefixes, nodes, strict=True)
            queries = [ScoreRequest(c, prefix, tokens, (0, 1, 2, 3)) for c, prefix, tokens in rows]
            started_s = time.perf_counter()
            if kind == "batch":
                room.plain.score_batch(queries)
            else:
                for query in queries:
                    query.score()
            spent.append(time.perf_counter() - started_s)
            prefixes = [prefix + tokens for prefix, tokens in zip(prefixes, nodes, strict=True)]
        seconds[kind] = float(np.median(spent))
    return seconds["single"] / seconds["batch"]


def first_action(room: Room, answers: int) -> list[Figure]:
    """Time to first action at the 99th percentile, of 16 robots at once over the same answers alone.

    Only answers count that come while every robot has questions left: later ones meet a smaller crowd.
    """
    many = [replace(robot, think_s=2.0) for robot in room.robots(ROBOTS, 2 * answers)]
    fleet = room.fleet(many)
    fleet.run(spread_s=20.0, answers=ROBOTS * answers)
    crowd, alone = list[RobotAnswer](), list[RobotAnswer]()
    for robot, fresh in zip(many, room.robots(ROBOTS, 2 * answers), strict=True):
        crowd += robot.ended_answers
        single = replace(fresh, questions=robot.questions[: len(robot.ended_answers)])
        room.fleet([single]).run()
        alone += single.ended_answers
    alone_s, crowd_s = _p99(alone), _p99(crowd)
    note = f"{len(crowd)} answers 2 s apart, {PROFILE}: {crowd_s:.1f} s over {alone_s:.1f} s"
    return [Figure("first_action_p99_ratio", crowd_s / alone_s, 3.5, "at most", note)]


def _p99(said: list[RobotAnswer]) -> float:
    return float(np.percentile([answer.first_s - answer.asked_s for answer in said], 99))


def overload(room: Room, answers: int) -> list[Figure]:
    """Tokens a second with four times as many robots as sessions, over those with as many as sessions."""
    places = 8
    full = room.fleet(room.robots(places, 2 * answers), sessions=places)
    capacity = _tokens_per_s(full, 2 * answers)
    crowd = room.fleet(room.robots(4 * places, answers), sessions=places)
    goodput = _tokens_per_s(crowd, answers)
    lost = sum(answer.error is not None for robot in crowd.robots for answer in robot.ended_answers)
    busy = crowd.protocol.stats.refused["sessions"]
    note = f"{4 * places} robots for {places} places, {busy} times Busy, {lost} answers lost"
    return [Figure("overload_goodput", goodput / capacity, 0.9, "at least", note)]
