"""Robots stick to replicas, and leave them when they must. No Ray here: the table alone."""

from __future__ import annotations

import pytest

from vlm_spec_decode.cloud.replicas.router import (
    ABSENT_S,
    HELLO_FIRST_REPLY,
    NO_REPLICA,
    UNMENTIONED_S,
    ReplicaRouter,
)
from vlm_spec_decode.core.types import AnswerRequest, Observation, SamplingParams
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import Busy, Close, Hello, Ping, Refused

HELLO = codec.encode(Hello("test", "t", "p", "g", 3))
PACKER = codec.TokenPacker(3)


def opening(answer: int, epoch: int = 0) -> bytes:
    request = AnswerRequest(answer, Observation(None, "go"), SamplingParams(), "hybrid")
    return codec.encode(codec.open_message(request, PACKER, epoch, ()))


def peer(number: int) -> bytes:
    return b"robot %d" % number


def front_of(replicas: int, robots: int = 0) -> ReplicaRouter:
    router = ReplicaRouter()
    for number in range(replicas):
        router.on_starting(number)
        router.on_up(number)
    for number in range(robots):
        assert router.route(peer(number), HELLO)
    return router


def place(router: ReplicaRouter, number: int) -> int:
    routed = router.route(peer(number), codec.encode(Ping(0, 0, 0, 0, False)))
    assert routed
    return routed[0]


def test_robots_are_spread_evenly_and_stay_where_they_are() -> None:
    router = front_of(3, robots=9)
    assert [router.load(replica) for replica in range(3)] == [3, 3, 3]
    before = [place(router, number) for number in range(9)]
    for answer in (1, 2, 3):
        for number in range(9):
            routed = router.route(peer(number), opening(answer))
            assert routed == (before[number], [(peer(number), opening(answer))])
    assert router.moved == 0


def test_robots_that_are_gone_are_no_load() -> None:
    router = front_of(2, robots=8)
    staying = [number for number in range(8) if place(router, number) == 0]
    for number in staying:
        router.route(peer(number), HELLO, now_s=ABSENT_S + 1)
    assert [router.load(replica) for replica in (0, 1)] == [4, 0]
    for number in range(8, 11):
        routed = router.route(peer(number), HELLO, now_s=ABSENT_S + 2)
        assert routed
        assert routed[0] == 1


def test_the_robots_of_a_lost_replica_are_called_and_come_to_another() -> None:
    router = front_of(2, robots=4)
    mine = [number for number in range(4) if place(router, number) == 0]
    router.on_lost(0)
    assert sorted(router.outbox) == sorted((peer(number), HELLO_FIRST_REPLY) for number in mine)
    assert router.route(peer(mine[0]), opening(1)) is not None, "a new answer goes where somebody serves"
    assert router.route(peer(mine[1]), HELLO) == (1, [(peer(mine[1]), HELLO)])
    assert {place(router, number) for number in range(4)} == {1}
    assert not router.is_current_replica(0, peer(mine[0])), "what a lost replica still says is not passed on"
    router.on_up(0)
    assert router.replicas == {0: "live", 1: "live"}, "Ray has started it again"


def test_without_any_replica_robots_wait_and_are_called_when_one_is_up() -> None:
    router = front_of(1, robots=1)
    router.on_lost(0)
    router.outbox.clear()
    assert router.route(peer(0), HELLO) is None
    assert router.outbox == [(peer(0), NO_REPLICA)]
    router.outbox.clear()
    router.on_up(0)
    assert router.outbox == [(peer(0), HELLO_FIRST_REPLY)]
    assert router.route(peer(0), HELLO) == (0, [(peer(0), HELLO)])


def test_a_replica_that_goes_ends_what_is_open_and_gets_nothing_new() -> None:
    router = front_of(2, robots=2)
    number = next(n for n in range(2) if place(router, n) == 0)
    assert router.route(peer(number), opening(5)) == (0, [(peer(number), opening(5))])
    router.on_draining(0)
    again = opening(5, epoch=1)
    assert router.route(peer(number), again) == (0, [(peer(number), again)]), "the open answer stays"
    close = codec.encode(Close(5, 0))
    assert router.route(peer(number), close) == (0, [(peer(number), close)])
    moved = router.route(peer(number), opening(6))
    assert moved == (1, [(peer(number), HELLO), (peer(number), opening(6))])
    router.on_lost(0)
    assert router.outbox == []
    assert router.replicas == {1: "live"}


def test_a_new_replica_takes_its_share_at_the_next_answers() -> None:
    router = front_of(1, robots=6)
    router.on_starting(1)
    router.on_up(1)
    assert {place(router, number) for number in range(6)} == {0}
    for number in range(6):
        router.route(peer(number), opening(1))
    assert (router.load(0), router.load(1)) == (4, 2) or (router.load(0), router.load(1)) == (3, 3)


def test_a_front_that_drains_lets_open_answers_end_and_begins_none() -> None:
    router = front_of(1, robots=1)
    assert router.route(peer(0), opening(1))
    router.is_draining = True
    assert router.route(peer(0), opening(1, epoch=1)), "the open answer goes on"
    assert router.route(peer(0), opening(2)) is None
    busy = codec.decode(router.outbox[-1][1])
    assert isinstance(busy, Busy)
    assert (busy.answer, busy.reason) == (2, "draining")


def test_strangers_and_garbage_reach_no_replica() -> None:
    router = front_of(1)
    assert router.route(b"stranger", opening(1)) is None
    assert router.outbox == [(b"stranger", HELLO_FIRST_REPLY)]
    assert router.route(b"stranger", b"\x01garbage") is None
    assert router.route(b"stranger", b"\x07garbage") is None
    refusal = codec.decode(router.outbox[-1][1])
    assert isinstance(refusal, Refused)
    assert refusal.reason == "version"
    assert router.robots == 0


@pytest.mark.parametrize("robots", [8300])
def test_robots_that_are_long_silent_are_forgotten(robots: int) -> None:
    router = ReplicaRouter()
    for number in range(robots):
        router.route(peer(number), HELLO)
    assert router.robots == 8192


def test_a_robot_with_open_answers_stays_with_its_replica_for_one_more() -> None:
    """Its frames and its shared passes are there; without open answers it moves to the idle replica."""
    router = front_of(1, robots=4)
    router.route(peer(0), opening(1))
    router.on_starting(1)
    router.on_up(1)
    for number in (2, 3):
        assert router.route(peer(0), opening(number)) == (0, [(peer(0), opening(number))])
    for number in (1, 2, 3):
        router.route(peer(0), codec.encode(Close(number, 0)))
    assert router.route(peer(0), opening(4)) == (1, [(peer(0), HELLO), (peer(0), opening(4))])


def test_answers_that_a_robot_no_longer_mentions_do_not_hold_it() -> None:
    """Their Close was lost; the answers of which it still speaks do."""
    router = front_of(1, robots=4)
    for number in (1, 2):
        router.route(peer(0), opening(number))
    router.on_starting(1)
    router.on_up(1)
    later_s = UNMENTIONED_S / 2
    router.route(peer(0), codec.encode(Ping(0, 2, 0, 0, False)), later_s)
    assert router.route(peer(0), opening(3), UNMENTIONED_S + 1) == (0, [(peer(0), opening(3))])
    for number in range(1, 4):
        router.route(peer(number), codec.encode(Ping(0, 0, 0, 0, False)), 3 * UNMENTIONED_S)
    routed = router.route(peer(0), opening(4), 3 * UNMENTIONED_S)
    assert routed == (1, [(peer(0), HELLO), (peer(0), opening(4))])


def test_answers_go_on_elsewhere_when_their_replica_is_taken_away() -> None:
    router = front_of(2, robots=2)
    at = place(router, 0)
    router.route(peer(0), opening(1))
    router.on_draining(at)
    assert router.route(peer(0), opening(1, epoch=1)) == (at, [(peer(0), opening(1, epoch=1))])
    assert router.route(peer(0), opening(2)) == (1 - at, [(peer(0), HELLO), (peer(0), opening(2))])
