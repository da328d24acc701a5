"""Several open answers of one robot on one connection: each as if it were alone, whatever the link does."""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from test.protocol.test_hostile_link import HELLO, PEER, HostileLink, Pair, own_answer, run_kindly
from test.tables import POOR_DRAFT, STOP, TARGET, TableModel
from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.core.errors import CloudBusy, CloudRefused, CloudUnreachable
from vlm_spec_decode.core.types import (
    MAX_OPEN_ANSWERS,
    AnswerRequest,
    Commit,
    DraftMessage,
    Image,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import chain_parents
from vlm_spec_decode.edge.client_protocol import ClientProtocol, ClientState
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.request_state import Traffic
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire

LONG_ANSWERS = 55
"""Seed after which four answers are at least eight tokens long."""

PATIENT = ProtocolTiming(give_up_s=1e9, busy_s=1e9)
STRATEGIES = ("speculative", "autoregressive", "speculative", "pipelined")


def params_of(seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, max_tokens=10, stop_ids=(STOP,), seed=seed)


class Crowd(Pair):
    """A pair of ends with several answers: number n has seed `seed + n`, and some strategies draft."""

    def __init__(
        self,
        answers: int = 0,
        seed: int = LONG_ANSWERS,
        image_bytes: int = 512,
        timing: ProtocolTiming | None = PATIENT,
        limits: ServerLimits | None = None,
        clouds: int = 2,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.now_s, self.seed, self.image_bytes = 0.0, seed, image_bytes
        self.edge = ClientProtocol(HELLO, timing, clouds=clouds)
        self.target = TableModel(TARGET)
        self.clouds = [self.new_cloud() for _ in range(clouds)]
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.sequences: dict[int, Sequence] = {}
        self.errors: dict[int, Exception] = {}
        self.traffic: dict[int, Traffic] = {}
        self.closed: set[int] = set()
        self.numbers, self.nodes = count(1), count(1)
        self.drafter = TableModel(POOR_DRAFT).open(Observation(None, "go"))
        self.edge.connect(0.0)
        for _ in range(answers):
            self.open()
        self.collect()

    def new_cloud(self) -> ServerProtocol:
        return ServerProtocol(self.target.card, "grammar", self.limits)

    def expected(self, number: int) -> Tokens:
        return own_answer(params_of(self.seed + number))

    def open(self) -> int:
        number = next(self.numbers)
        jpeg = bytes([number]) * self.image_bytes
        observation = Observation(Image(jpeg, 640, 360) if jpeg else None, f"go {number}")
        self.sequences[number], self.traffic[number] = Sequence(), Traffic()
        name = STRATEGIES[number % len(STRATEGIES)]
        request = AnswerRequest(number, observation, params_of(self.seed + number), name)
        self.edge.open(request, self.now_s, self.traffic[number])
        self.draft_for(number)
        self.collect()
        return number

    def close(self, number: int) -> None:
        self.closed.add(number)
        self.edge.close(self.now_s, number)
        self.collect()

    def draft_for(self, number: int) -> None:
        if STRATEGIES[number % len(STRATEGIES)] == "autoregressive":
            return
        chain: Tokens = ()
        while len(chain) < 3:
            prefix = self.sequences[number].tokens + chain
            chain += (pick(self.drafter.score(prefix)[0], len(prefix), params_of(self.seed + number)),)
        first, *_ = [next(self.nodes) for _ in chain]
        base = len(self.sequences[number])
        self.edge.submit(DraftMessage(number, 0, base, first, chain, chain_parents(first, 3)))

    def settle(self) -> None:
        while self.edge.events:
            event = self.edge.events.popleft()
            assert event.answer not in self.closed, "nothing more comes of an answer that was closed"
            if not isinstance(event, Commit):
                assert isinstance(event, Exception)
                for number in [event.answer] if event.answer else self.going():
                    self.errors[number] = event
                continue
            assert self.sequences[event.answer].commit(event) == event.tokens
            if not self.sequences[event.answer].finished:
                self.draft_for(event.answer)
        self.collect()

    def going(self) -> list[int]:
        ended = self.closed | self.errors.keys()
        return [n for n, sequence in self.sequences.items() if not sequence.finished and n not in ended]

    def check(self) -> None:
        for number, sequence in self.sequences.items():
            assert sequence.tokens == self.expected(number)[: len(sequence)]
        for entry in [e for cloud in self.clouds for e in cloud.requests.values()]:
            if entry.session:
                held = entry.session.sequence.tokens
                assert held == self.expected(entry.message.answer)[: len(held)]

    def check_all_arrived(self) -> None:
        assert not self.going()
        for number in self.sequences.keys() - self.closed - self.errors.keys():
            assert self.sequences[number].tokens == self.expected(number)

    def served(self) -> set[int]:
        """The answers that the cloud in use has open."""
        return {answer for _, answer in self.cloud.requests}


class HostileCrowd(HostileLink):
    """The same hostile link under one to four answers, opened and closed at any time."""

    @initialize(
        seed=st.integers(0, 30), image_bytes=st.sampled_from([0, 512, 20_480]), answers=st.integers(1, 3)
    )
    def begin(self, seed: int, image_bytes: int, answers: int = 2) -> None:
        self.pair: Crowd = Crowd(answers, seed, image_bytes)

    @rule()
    def open_one(self) -> None:
        if len(self.pair.sequences) < MAX_OPEN_ANSWERS:
            self.pair.open()

    @rule(which=st.integers(0, 3))
    def close_one(self, which: int) -> None:
        if going := self.pair.going():
            self.pair.close(going[which % len(going)])

    @invariant()
    def both_ends_hold_prefixes_of_the_answer(self) -> None:
        if hasattr(self, "pair"):
            self.pair.check()

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        for cloud in self.pair.clouds:
            cloud.stats.is_draining = False
        for _ in range(600):
            if not self.pair.going():
                break
            self.deliver_all(True)
            self.pair.work()
            self.deliver_all(False)
            self.pair.pass_time(0.3)
        assert not self.pair.errors
        self.pair.check_all_arrived()


HostileCrowd.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHostileCrowd = HostileCrowd.TestCase


@pytest.mark.parametrize("answers", [2, 3, 4])
def test_a_kind_link_serves_all_of_them_in_shared_passes_without_recovery(answers: int) -> None:
    crowd = Crowd(answers, image_bytes=20_480, clouds=1)
    run_kindly(crowd)
    crowd.check_all_arrived()
    assert not crowd.edge.dropped
    assert crowd.cloud.stats.largest_batch == answers
    assert [traffic.image_bytes for traffic in crowd.traffic.values()] == [20_480] * answers


@pytest.mark.parametrize("closed", [1, 2, 3])
def test_closing_one_leaves_the_others_untouched(closed: int) -> None:
    crowd = Crowd(3, clouds=1)
    while not all(map(len, crowd.sequences.values())):
        run_kindly(crowd, rounds=1)
    crowd.close(closed)
    run_kindly(crowd, rounds=1)
    assert closed not in crowd.served()
    run_kindly(crowd)
    crowd.check_all_arrived()
    assert len(crowd.sequences[closed]) < len(crowd.expected(closed))
    assert all(request.sequence.epoch == 0 for request in crowd.edge.requests.values()), "none began anew"


def test_a_refusal_of_one_is_told_with_its_number_and_the_others_go_on() -> None:
    crowd = Crowd(3, clouds=1)
    run_kindly(crowd, rounds=1)
    crowd.edge.receive(codec.encode(wire.Refused(2, 0, "image", "broken")), crowd.now_s)
    crowd.settle()
    assert [type(error) for error in crowd.errors.values()] == [CloudRefused]
    assert crowd.edge.state is ClientState.ANSWERING
    run_kindly(crowd)
    assert crowd.errors.keys() == {2}
    crowd.check_all_arrived()


def test_a_robot_may_have_as_many_as_the_cloud_is_set_to_and_no_more() -> None:
    crowd = Crowd(4, clouds=1, limits=ServerLimits(sessions_per_peer=2))
    for _ in range(3):
        while crowd.up:
            crowd.deliver(True, crowd.up.popleft())
        while crowd.down:
            crowd.deliver(False, crowd.down.popleft())
    assert crowd.errors.keys() == {3, 4}
    for error in crowd.errors.values():
        assert isinstance(error, CloudRefused)
        assert error.reason == wire.TOO_MANY_ANSWERS
        assert "2 open answers; the cloud allows 2" in str(error)
    run_kindly(crowd)
    crowd.check_all_arrived()


def test_a_lost_close_does_not_use_up_a_place() -> None:
    """The cloud still counts an answer that the robot no longer mentions; a new one takes its place."""
    crowd = Crowd(2, clouds=1, limits=ServerLimits(sessions_per_peer=2))
    while not all(map(len, crowd.sequences.values())):
        run_kindly(crowd, rounds=1)
    crowd.close(2)
    crowd.up.clear()
    assert crowd.served() == {1, 2}
    crowd.open()
    run_kindly(crowd, rounds=400)
    assert not crowd.errors
    crowd.check_all_arrived()


def test_a_robot_that_forgets_its_answers_can_still_ask() -> None:
    """Four answers whose Close was lost long ago, and no memory of it at the edge."""
    crowd = Crowd(4, clouds=1)
    run_kindly(crowd, rounds=2)
    for number in crowd.going():
        crowd.close(number)
    crowd.up.clear()
    crowd.edge._closed.clear()
    assert len(crowd.served()) == 4
    crowd.pass_time(crowd.limits.silent_s + 0.5)
    number = crowd.open()
    run_kindly(crowd)
    assert crowd.sequences[number].tokens == crowd.expected(number)
    assert not crowd.errors


def test_a_close_that_was_lost_with_its_connection_is_sent_again_on_the_next_one() -> None:
    crowd = Crowd(2, clouds=1)
    run_kindly(crowd, rounds=3)
    crowd.close(1)
    crowd.up.clear()

    class Renewed:
        def was_connected(self) -> bool:
            return True

        def renew(self) -> None: ...

        def cancel_renewal(self) -> None: ...

    crowd.edge.maintain(Renewed(), crowd.now_s)
    sent = [codec.decode(data) for data in crowd.edge.outbox]
    assert sent[0] == wire.Close(1, 0)
    crowd.collect()
    run_kindly(crowd)
    assert 1 not in crowd.served()
    crowd.check_all_arrived()


def test_one_that_is_busy_waits_beside_one_that_is_served() -> None:
    """A cloud with one place: the second answer comes when the first has ended, at the same cloud."""
    crowd = Crowd(2, image_bytes=0, clouds=1, limits=ServerLimits(sessions=1, retry_s=0.2))
    run_kindly(crowd, rounds=2)
    assert crowd.edge.state is ClientState.ANSWERING
    assert [request.is_sent for request in crowd.edge.requests.values()] == [True, False]
    while not crowd.sequences[1].finished:
        run_kindly(crowd, rounds=1)
    assert not len(crowd.sequences[2])
    crowd.close(1)
    run_kindly(crowd, rounds=400)
    crowd.closed.clear()
    crowd.check_all_arrived()


def test_one_that_stays_busy_ends_alone() -> None:
    timing = ProtocolTiming(give_up_s=1e9, busy_s=0.5)
    crowd = Crowd(2, image_bytes=0, clouds=1, timing=timing, limits=ServerLimits(sessions=1, retry_s=0.2))
    run_kindly(crowd, rounds=200)
    assert {number: type(error) for number, error in crowd.errors.items()} == {2: CloudBusy}
    assert crowd.sequences[1].tokens == crowd.expected(1)


def test_a_cloud_that_forgets_one_gets_only_that_again() -> None:
    crowd = Crowd(3, clouds=1)
    while not all(map(len, crowd.sequences.values())):
        run_kindly(crowd, rounds=1)
    crowd.cloud.requests.end(crowd.cloud.requests[PEER, 2])
    run_kindly(crowd, rounds=200)
    epochs = {n: request.sequence.epoch for n, request in crowd.edge.requests.items()}
    assert epochs == {1: 0, 2: 1, 3: 0}
    crowd.check_all_arrived()


def test_a_cloud_that_restarts_goes_on_with_all_of_them() -> None:
    crowd = Crowd(3, clouds=1)
    while not all(map(len, crowd.sequences.values())):
        run_kindly(crowd, rounds=1)
    before = {number: sequence.tokens for number, sequence in crowd.sequences.items()}
    crowd.clouds[0] = crowd.new_cloud()
    run_kindly(crowd, rounds=200)
    crowd.check_all_arrived()
    for number, tokens in before.items():
        assert crowd.sequences[number].tokens[: len(tokens)] == tokens


def test_another_model_ends_those_that_have_begun_and_serves_the_others() -> None:
    crowd = Crowd(1, clouds=1)
    while not len(crowd.sequences[1]):
        run_kindly(crowd, rounds=1)
    crowd.open()
    crowd.edge.receive(codec.encode(wire.Refused(0, 0, wire.HELLO_FIRST, "")), crowd.now_s)
    welcome = wire.Welcome("other", "9", 4, (), 65536, 1 << 20, ("speculative",))
    crowd.edge.receive(codec.encode(welcome), crowd.now_s)
    crowd.settle()
    assert [getattr(crowd.errors[n], "reason", "") for n in crowd.errors] == ["model_changed"]
    assert crowd.errors.keys() == {1}
    assert list(crowd.edge.requests) == [2]
    assert crowd.edge.state is ClientState.ANSWERING


def test_silence_counts_from_the_last_message_however_many_are_asked() -> None:
    """A robot that asks again and again does not take its own questions for signs of life."""
    edge, now_s = ClientProtocol(HELLO, ProtocolTiming(give_up_s=2.0)), 0.0
    edge.connect(0.0)
    edge.receive(codec.encode(wire.Welcome("t", "1", 4, (), 65536, 1 << 20, ("speculative",))), 0.0)
    for number in range(1, 5):
        edge.open(AnswerRequest(number, Observation(None, "go"), params_of(1), "speculative"), now_s)
        for _ in range(9):
            now_s += 0.1
            edge.tick(now_s)
    (error,) = edge.events
    assert isinstance(error, CloudUnreachable)
    assert error.answer == 0, "it ends all of them"


def test_images_share_one_window_and_the_oldest_answers_goes_first() -> None:
    crowd = Crowd(3, image_bytes=102_400, clouds=1)
    crowd.deliver(True, crowd.up.popleft())
    window = crowd.edge._window_bytes()
    arrived: list[int] = []
    while crowd.up or crowd.down:
        under_way = sum(r.upload.under_way for r in crowd.edge.requests.values() if r.upload)
        assert under_way <= window
        if crowd.down:
            crowd.deliver(False, crowd.down.popleft())
        else:
            data = crowd.up.popleft()
            message = codec.decode(data)
            if isinstance(message, wire.ImageChunk):
                arrived.append(message.answer)
            crowd.deliver(True, data)
    assert arrived == sorted(arrived)
    assert {n: arrived.count(n) for n in (1, 2, 3)} == {1: 25, 2: 25, 3: 25}
    assert all(request.image for request in crowd.cloud.requests.values())


def test_bytes_are_counted_for_each_answer() -> None:
    crowd = Crowd(3, image_bytes=512, clouds=1)
    run_kindly(crowd)
    alone = Crowd(1, image_bytes=512, clouds=1)
    run_kindly(alone)
    for traffic in crowd.traffic.values():
        assert traffic.image_bytes == 512
        assert traffic.down_bytes > 0
    # Pings go for each answer as long as it is open; of the rest it is the very same.
    ping = len(codec.encode(wire.Ping(10**6, 1, 0, 10, False)))
    assert abs(crowd.traffic[1].up_bytes - alone.traffic[1].up_bytes) <= 4 * ping
