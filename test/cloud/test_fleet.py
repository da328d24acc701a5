"""Many robots on one target, in virtual time: the same tokens, fair turns, bounded memory, room or Busy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from benchmarks.lib.fleet import BatchCost, Fleet
from benchmarks.lib.robots import VirtualRobot
from test.models import checkpoints
from test.tables import POOR_DRAFT, STOP, TARGET, TableContext, TableModel
from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.core.errors import CloudBusy, CloudRefused
from vlm_spec_decode.core.ports import Model, Scored, ScoreRequest
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.protocol.messages import Hello

COST = BatchCost(HardwareProfile("test", 10, 100, 100, 100, 10))
LINK = LinkProfile("test", rtt_ms=20)
PARAMS = SamplingParams(temperature=1.0, max_tokens=8)


def robots(target: Model, count: int, draft: Model | None = None, answers: int = 1) -> list[VirtualRobot]:
    card = target.card
    hello = Hello("test", card.tokenizer_digest, card.prompt_digest, "grammar", card.vocab_size)
    found = []
    for index in range(count):
        asked = [
            (Observation(None, f"go {index % 5}"), replace(PARAMS, seed=100 * index + n))
            for n in range(answers)
        ]
        # Every other robot only listens: plain steps and trees of several sizes share a pass.
        own = draft if index % 2 else None
        robot = VirtualRobot(b"%d" % index, hello, asked, bool, own, 2 + index % 3, 0.01)
        found.append(robot)
    return found


def alone(target: Model, observation: Observation, params: SamplingParams) -> tuple[Tokens, set[int]]:
    """Return what the target says by itself, and at which positions two tokens are as good as tied."""
    context, said, ties = target.open(observation), Tokens(), set()
    while len(said) < params.max_tokens and (not said or said[-1] not in params.stop_ids):
        logits = context.score(said)[0]
        token = pick(logits, len(said), params)
        bumped = logits.copy()
        bumped[token] -= 1e-4
        if pick(bumped, len(said), params) != token:
            ties.add(len(said))
        said += (token,)
    return said, ties


def assert_own_answers(target: Model, robot: VirtualRobot) -> None:
    for said, (observation, params) in zip(robot.ended_answers, robot.questions, strict=True):
        assert said.error is None
        expected, ties = alone(target, observation, params)
        end = min(ties, default=len(expected))
        assert said.tokens[:end] == expected[:end]
        assert len(said.tokens) == len(expected) or ties


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    folder = checkpoints.llama(tmp_path_factory.mktemp("fleet") / "target")
    return load_model(f"{folder},prompt=bare")


def test_64_robots_at_once_say_what_each_says_alone(tiny: VlmModel) -> None:
    fleet = Fleet(tiny, robots(tiny, 64, draft=tiny), COST, LINK)
    fleet.run(spread_s=0.5)
    for robot in fleet.robots:
        assert_own_answers(tiny, robot)
    stats = fleet.protocol.stats
    assert stats.largest_batch == 32
    assert stats.batched_answers / stats.passes > 12
    assert stats.evictions == 0


def test_caches_of_idle_answers_make_way_and_nobody_notices(tiny: VlmModel) -> None:
    """Memory for 3 of 12 answers, whose robots draft for longer than a cache is kept for them."""
    one = Fleet(tiny, robots(tiny, 1), COST, LINK)
    one.run()
    session_bytes = one.protocol.scheduler.session_bytes
    limits = ServerLimits(kv_bytes=4 * session_bytes, evict_after_s=0.0, active_s=0.0)
    slow = [replace(r, draft=tiny, draft_s=0.5) for r in robots(tiny, 12)]
    fleet = Fleet(tiny, slow, COST, LINK, limits=limits)
    fleet.run(spread_s=1.0)
    for robot in fleet.robots:
        assert_own_answers(tiny, robot)
    assert fleet.protocol.stats.evictions > 0
    assert fleet.protocol.stats.kv_bytes <= limits.kv_bytes


@dataclass
class Cramped(TableModel):
    """A target with room for three answers in a pass, and for none that is about "go 3"."""

    def open(self, observation: Observation) -> TableContext:
        context = super().open(observation)
        context.is_huge = observation.instruction == "go 3"  # type: ignore[attr-defined]
        return context

    def score_batch(self, queries: Sequence[ScoreRequest]) -> list[Scored]:
        if len(queries) > 3 or any(query.context.is_huge for query in queries):  # type: ignore[attr-defined]
            raise MemoryError
        return [query.score_or_error() for query in queries]


def test_a_pass_without_memory_runs_in_halves_and_who_fits_in_none_is_refused_by_name() -> None:
    target = Cramped(TARGET)
    fleet = Fleet(target, robots(target, 10, TableModel(POOR_DRAFT)), COST, LINK)
    fleet.run()
    for index, robot in enumerate(fleet.robots):
        if index % 5 == 3:
            (said,) = robot.ended_answers
            assert isinstance(said.error, CloudRefused)
            assert said.error.reason == "out_of_memory"
        else:
            assert_own_answers(TableModel(TARGET), robot)
    assert fleet.protocol.stats.splits > 0
    assert fleet.protocol.scheduler.batch < fleet.protocol.limits.batch, "batches stay smaller for a while"


def test_nobody_starves_and_the_impatient_come_first() -> None:
    """One place in each pass, eight robots: each has its turn, and those with little patience end first."""
    target = TableModel(TARGET)
    patience = [0.3 if index < 2 else 20.0 for index in range(8)]
    fleet = Fleet(
        target,
        [
            replace(robot, timing=ProtocolTiming(give_up_s=give_up_s, ping_s=0.05))
            for robot, give_up_s in zip(robots(target, 8), patience, strict=True)
        ],
        COST,
        LINK,
        limits=ServerLimits(batch=1),
    )
    fleet.run()
    ended_s = [robot.ended_answers[0].ended_s for robot in fleet.robots]
    assert max(ended_s[:2]) < min(ended_s[2:])
    for robot in fleet.robots:
        assert_own_answers(target, robot)
    others = ended_s[2:]
    assert max(others) - min(others) < 0.3 * max(others), "the others took turns"


def test_who_finds_no_room_is_told_so_and_comes_again() -> None:
    target = TableModel(TARGET)
    limits = ServerLimits(sessions=4)
    fleet = Fleet(target, robots(target, 12, answers=2), COST, LINK, limits=limits)
    fleet.run()
    for robot in fleet.robots:
        assert_own_answers(target, robot)
    assert fleet.protocol.stats.refused["sessions"] > 0

    impatient = [replace(robot, timing=ProtocolTiming(busy_s=0.2)) for robot in robots(target, 12)]
    fleet = Fleet(target, impatient, COST, LINK, limits=limits)
    fleet.run()
    errors = [robot.ended_answers[0].error for robot in fleet.robots]
    assert any(isinstance(error, CloudBusy) and error.retry_after_s > 0 for error in errors)
    assert any(error is None for error in errors)


def test_a_draining_cloud_ends_what_is_open_and_begins_nothing() -> None:
    target = TableModel(TARGET)
    asked = robots(target, 4, TableModel(POOR_DRAFT), answers=2)
    fleet = Fleet(target, [replace(r, timing=ProtocolTiming(busy_s=0.5)) for r in asked], COST, LINK)
    fleet.run(until_s=0.3)
    fleet.protocol.stats.is_draining = True
    assert fleet.protocol.under_way(fleet.clock.now())
    fleet.run_on()
    for robot in fleet.robots:
        first, second = robot.ended_answers
        assert first.tokens == alone(target, *robot.questions[0])[0]
        assert isinstance(second.error, CloudBusy)
        assert second.error.detail == "draining"
    assert not fleet.protocol.under_way(fleet.clock.now())


def test_a_stop_token_ends_an_answer_in_a_batch_as_alone() -> None:
    target = TableModel(TARGET)
    asked = [
        replace(r, questions=[(q, replace(p, stop_ids=(STOP,))) for q, p in r.questions])
        for r in robots(target, 6)
    ]
    fleet = Fleet(target, asked, COST, LINK)
    fleet.run()
    for robot in fleet.robots:
        assert_own_answers(target, robot)
