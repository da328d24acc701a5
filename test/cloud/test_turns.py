"""Whose turn it is: little slack first, no more than can be in time, and nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from test.tables import TARGET, TableModel
from vlm_spec_decode.cloud.config import MAX_PATIENCE_S, ServerLimits
from vlm_spec_decode.cloud.requests import BatchResult, JobResult, Jobs, ServerCounts, ServerRequest
from vlm_spec_decode.cloud.scheduler import KEPT_PLACES, Scheduler
from vlm_spec_decode.core.types import AnswerRequest, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.price import USUAL_NODE, Price
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.protocol import codec

PASS_S = 0.1


@dataclass(slots=True)
class Noting(CloudPolicy):
    """Takes a plain step whenever it is asked, and notes the prices."""

    prices: list[Price] = field(default_factory=list)

    def priced(self, price: Price) -> None:
        self.prices.append(price)

    def next_pass(self, tree: SpeculationTree) -> Tokens:
        return ()


def request(number: int, deadline_s: float = 0.0, ready_s: float = 0.0) -> ServerRequest:
    params = SamplingParams(max_tokens=64)
    asked = AnswerRequest(number, Observation(None, "go"), params, "hybrid", deadline_s=deadline_s)
    message = codec.open_message(asked, codec.TokenPacker(3), 0, ())
    found = ServerRequest(peer=b"%d" % number, message=message, ready_s=ready_s, opened_s=0.0, is_cached=True)
    found.session = Session(asked, TableModel(TARGET).open(asked.observation), Noting())
    found.prefill_started = True
    return found


def scheduler(batch: int = 32) -> Scheduler:
    """Return one that has seen passes of `PASS_S` and 1 % an answer, of answers that take few of them."""
    found = Scheduler(ServerLimits(batch=batch, prices=True), ServerCounts())
    for answers in (1, 8, 32, 4) * 20:
        found.times.learn(answers, 0, PASS_S * (1 + 0.01 * (answers - 1)))
    return found


def numbers(jobs: Jobs) -> list[int]:
    return [job.request.message.answer for job in jobs]


def end(jobs: Jobs) -> None:
    for job in jobs:
        job.request.running = False
        job.request.ready_s = 1.0


def test_without_deadlines_the_longest_waiting_come_first_as_ever() -> None:
    requests = [request(number, ready_s=0.01 * (5 - number)) for number in range(1, 6)]
    assert numbers(scheduler().next_batch(requests, 1.0)) == [5, 4, 3, 2, 1]


def test_those_with_the_earliest_deadline_come_first() -> None:
    requests = [
        request(1),
        request(2, deadline_s=9.0),
        request(3, deadline_s=3.0),
        request(4, deadline_s=5.0),
    ]
    assert numbers(scheduler().next_batch(requests, 0.1)) == [3, 4, 2, 1]


def test_a_pass_takes_no_more_than_can_be_in_time_and_keeps_places_for_the_late() -> None:
    """Passes of 0.1 s and 13 % an answer: 6 of them fit into 2 s with few others, and not with 31."""
    one = Scheduler(ServerLimits(batch=32, prices=True), ServerCounts())
    for answers in (1, 8, 32, 4) * 20:
        one.times.learn(answers, 0, PASS_S * (1 + 0.13 * (answers - 1)))
    requests = [request(number, deadline_s=2.0) for number in range(1, 65)]
    jobs = one.next_batch(requests, 0.0)
    kept = 32 // KEPT_PLACES
    passes = one.work["hybrid"].tokens.value / one.work["hybrid"].pass_tokens.value
    timely = len(jobs) - kept
    assert 8 < timely < 30
    assert passes * one.times.seconds(timely, 0) <= 2.0 < passes * one.times.seconds(timely + 1, 0)


@pytest.mark.parametrize("deadline_s", [0.2, 0.5, 5.0, 0.0])
def test_nobody_waits_for_ever_beside_a_stream_of_urgent_ones(deadline_s: float) -> None:
    """32 that can just be in time are always ready; one more is taken before its edge's patience is over."""
    one, old = scheduler(), request(1, deadline_s=deadline_s)
    now_s = 0.0
    while not old.running and now_s <= MAX_PATIENCE_S + 1:
        fresh = [request(100 + n, deadline_s=now_s + 1.5, ready_s=now_s) for n in range(32)]
        for each in fresh:
            each.opened_s = 0.0
        end(tuple(job for job in one.next_batch([old, *fresh], now_s) if job.request is not old))
        now_s += PASS_S
    assert old.running
    assert now_s <= MAX_PATIENCE_S + PASS_S


def test_the_price_is_0_alone_and_grows_with_the_queue_and_with_others_haste() -> None:
    def told(count: int, others_deadline_s: float = 0.0, own_deadline_s: float = 0.0) -> Price:
        own = request(1, own_deadline_s)
        beside = [request(2 + n, others_deadline_s) for n in range(count)]
        scheduler().next_batch([own, *beside], 0.0)
        assert own.session
        (price,) = own.session.policy.prices  # type: ignore[attr-defined]
        return price  # type: ignore[no-any-return]

    assert told(0).is_free
    assert told(0).others == 0.0
    queue = [told(count).others for count in (0, 1, 5, 20)]
    assert queue == sorted(queue)
    assert queue[-1] == pytest.approx(20)
    assert told(5, others_deadline_s=60.0).others < told(5, others_deadline_s=0.7).others
    assert told(5, own_deadline_s=60.0).others > told(5, own_deadline_s=0.7).others


def test_a_node_costs_something_where_every_pass_so_far_has_read_prompts() -> None:
    """At 128 robots all do; with nodes for nothing a pass verified 51 of them for each answer."""
    one, first = Scheduler(ServerLimits(batch=32, prices=True), ServerCounts()), request(1)
    first.is_cached = False
    jobs = one.next_batch([first], 0.0)
    plan = jobs[0].plan
    assert plan is not None
    one.on_batch_done(BatchResult(jobs, (JobResult(plan=plan, compute_s=0.2),), 0.2), [first], 0.2)
    requests = [request(number) for number in range(2, 12)]
    one.next_batch(requests, 0.3)
    for each in requests:
        assert each.session is not None
        (price,) = each.session.policy.prices  # type: ignore[attr-defined]
        assert price.node_s == pytest.approx(USUAL_NODE * 0.2)


def test_what_answers_take_is_learned_from_their_passes() -> None:
    one, own = scheduler(), request(1)
    before = one.work.get("hybrid")
    jobs = one.next_batch([own], 0.0)
    assert own.session
    plan = jobs[0].plan
    assert plan
    own.session.complete(plan, own.session.run(plan), PASS_S)
    one.on_batch_done(BatchResult(jobs, (JobResult(plan=plan, compute_s=PASS_S),), PASS_S), [own], 0.1)
    assert before is None
    assert one.work["hybrid"].pass_tokens.count == 1
    assert one.work["hybrid"].pass_tokens.value < 4.0, "one token of a plain step"


def test_without_prices_nobody_is_told_of_the_others() -> None:
    plain = Scheduler(ServerLimits(batch=32), ServerCounts())
    requests = [request(number) for number in range(1, 5)]
    assert len(plain.next_batch(requests, 0.1)) == 4
    for each in requests:
        assert each.session is not None
        assert all(price.is_free for price in each.session.policy.prices)  # type: ignore[attr-defined]
