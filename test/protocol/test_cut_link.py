"""A link that is gone for 0.1 to 60 s, and an edge that was stopped itself; in virtual time."""

from __future__ import annotations

import pytest

from test.protocol.test_hostile_link import HELLO, Pair, own_answer, run_kindly
from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.core.types import AnswerRequest
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming

TICK_S = 0.05
WALKING = ProtocolTiming.walking(0.6, 4.0)
"""As the VLM node has it by default."""


def begun(timing: ProtocolTiming) -> Pair:
    """An answer of which something is committed, and not all."""
    pair = Pair(0, timing=timing)
    while not len(pair.sequence):
        run_kindly(pair, rounds=1)
    assert not pair.sequence.finished
    return pair


def cut(pair: Pair, duration_s: float) -> None:
    """Let time pass in which nothing arrives, at either end."""
    until_s = pair.now_s + duration_s
    while pair.now_s < until_s:
        pair.now_s += min(TICK_S, until_s - pair.now_s)
        pair.edge.tick(pair.now_s)
        for cloud in pair.clouds:
            cloud.expire(pair.now_s)
        pair.collect()
        pair.up.clear()
        pair.down.clear()


@pytest.mark.parametrize("cut_s", [0.1, 1.0, 9.0])
def test_a_short_cut_is_a_pause(cut_s: float) -> None:
    pair = begun(ProtocolTiming())
    cut(pair, cut_s)
    run_kindly(pair)
    assert pair.sequence.tokens == own_answer(pair.params)


@pytest.mark.parametrize("cut_s", [60.0, 300.0])
def test_a_patient_edge_goes_on_after_a_long_cut_even_if_the_cloud_has_forgotten_it(cut_s: float) -> None:
    pair = begun(ProtocolTiming(give_up_s=1000.0))
    cut(pair, cut_s)
    run_kindly(pair, rounds=300)
    assert pair.sequence.tokens == own_answer(pair.params)
    assert pair.edge.epoch > 0, "another cloud, or one that had forgotten the answer"


def test_a_long_cut_is_named_once_and_the_next_answer_is_served() -> None:
    pair = begun(ProtocolTiming())
    cut(pair, 60.0)
    (error,) = pair.edge.events
    assert isinstance(error, CloudUnreachable)
    pair.edge.events.clear()
    pair.sequence = Sequence()
    pair.edge.open(AnswerRequest(2, pair.request.observation, pair.params, "autoregressive"), pair.now_s)
    pair.collect()
    run_kindly(pair)
    assert pair.sequence.tokens == own_answer(pair.params)


@pytest.mark.parametrize("stopped_s", [5.0, 60.0, 86_400.0])
def test_an_edge_that_was_stopped_itself_does_not_blame_the_cloud(stopped_s: float) -> None:
    """A computer was suspended, a process starved: its clock jumps, and the cloud has said no less."""
    pair = begun(ProtocolTiming())
    pair.pass_time(stopped_s)
    run_kindly(pair)
    assert pair.sequence.tokens == own_answer(pair.params)


def die(pair: Pair) -> None:
    """Kill the cloud that the edge speaks with."""
    dead = pair.edge.cloud_index
    pair.down.clear()
    while pair.edge.cloud_index == dead and not pair.edge.events:
        pair.now_s += TICK_S
        pair.up.clear()
        pair.edge.tick(pair.now_s)
    pair.collect()


def test_a_robot_that_walks_goes_on_at_the_next_cloud_before_it_falls_back() -> None:
    pair = begun(WALKING)
    began_s = pair.now_s
    die(pair)
    assert not pair.edge.events
    assert pair.now_s - began_s <= WALKING.switch_cloud_s + 2 * TICK_S < WALKING.give_up_s
    run_kindly(pair)
    assert pair.sequence.tokens == own_answer(pair.params)
    assert pair.edge.cloud_index == 1


def test_no_cloud_at_any_address_is_named_within_the_patience_that_holds_for_one() -> None:
    pair = begun(WALKING)
    began_s = pair.now_s
    while not pair.edge.events:
        cut(pair, TICK_S)
    assert isinstance(pair.edge.events[0], CloudUnreachable)
    assert pair.now_s - began_s <= WALKING.give_up_s + 2 * TICK_S


def test_who_is_told_to_come_again_later_does_not_take_the_pause_for_silence() -> None:
    pair = begun(WALKING)
    for cloud in pair.clouds:
        cloud.stats.is_draining = True
        cloud.requests.clear()
    until_s = pair.now_s + 5.0
    while pair.now_s < until_s:
        run_kindly(pair, rounds=1)
    for cloud in pair.clouds:
        cloud.stats.is_draining = False
    run_kindly(pair, rounds=300)
    assert pair.sequence.tokens == own_answer(pair.params)


def test_a_first_greeting_has_its_time_at_each_address() -> None:
    edge = ClientProtocol(HELLO, WALKING, clouds=3)
    edge.connect(0.0)
    now_s, places = 0.0, {0}
    while not edge.events:
        now_s += TICK_S
        edge.tick(now_s)
        places.add(edge.cloud_index)
    assert places == {0, 1, 2}
    assert now_s >= 3 * WALKING.per_cloud_timeout_s(is_welcome=False, rtt_s=0.0)
