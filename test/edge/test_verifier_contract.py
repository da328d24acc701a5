"""What every `Verifier` promises, in this process, in virtual time and over encrypted sockets alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from test.net.test_sockets import HELLO, IMAGE, cloud, edge, own_answer
from test.tables import STOP, TARGET, TableModel
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import Cancelled, CloudTimeout, VsdError
from vlm_spec_decode.core.ports import Verifier
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import LinkUsage, Tracer
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    Event,
    Hint,
    Observation,
    SamplingParams,
)
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.emulation import OVERHEAD_BYTES

pytestmark = pytest.mark.net
PARAMS = SamplingParams(temperature=1.0, max_tokens=16, stop_ids=(STOP,), seed=11)
OBSERVATION = Observation(None, "go")


@pytest.fixture(params=["local", "virtual", "sockets"])
def verifier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Verifier]:
    if request.param == "local":
        yield LocalVerifier(TableModel(TARGET), WallClock())
        return
    if request.param == "virtual":
        hardware = HardwareProfile("quick", 1.0, 5.0, 5.0, 9.0, 1.0)
        yield VirtualVerifier(TableModel(TARGET), hardware, LinkProfile("lan", 5.0), VirtualClock())
        return
    keys.generate(tmp_path)
    with cloud(tmp_path) as server, edge(server.address, tmp_path, hello=HELLO) as remote:
        remote.connect()
        yield remote


def answer(verifier: Verifier, number: int, params: SamplingParams = PARAMS) -> Sequence:
    verifier.open(AnswerRequest(number, OBSERVATION, params, "autoregressive"))
    sequence = Sequence()
    while not sequence.finished:
        event = verifier.wait(10)
        assert isinstance(event, Commit)
        assert event.start == len(sequence)
        assert sequence.commit(event) == event.tokens != ()
    verifier.close()
    return sequence


def test_commits_come_in_order_and_end(verifier: Verifier) -> None:
    assert answer(verifier, 1).tokens == own_answer(PARAMS)


def test_answers_follow_each_other(verifier: Verifier) -> None:
    for number in (1, 2, 3):
        params = SamplingParams(temperature=1.0, max_tokens=8, stop_ids=(STOP,), seed=number)
        assert answer(verifier, number, params).tokens == own_answer(params)


def test_a_new_answer_takes_the_place_of_an_open_one(verifier: Verifier) -> None:
    verifier.open(AnswerRequest(1, OBSERVATION, PARAMS, "autoregressive"))
    verifier.wait(10)
    assert answer(verifier, 2).tokens == own_answer(PARAMS)


@pytest.fixture
def has_link(verifier: Verifier) -> bool:
    return not isinstance(verifier, LocalVerifier)


LONG = SamplingParams(temperature=1.0, max_tokens=60, seed=3)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_answers_at_once_are_those_asked_alone(verifier: Verifier, count: int) -> None:
    assert verifier.max_answers >= count
    lanes = [verifier, *(verifier.another() for _ in range(count - 1))]
    sequences = [Sequence() for _ in lanes]
    seeded = [replace(LONG, seed=seed) for seed in range(count)]
    for number, (lane, params) in enumerate(zip(lanes, seeded, strict=True), 1):
        lane.open(AnswerRequest(number, OBSERVATION, params, "autoregressive"))
    while not all(sequence.finished for sequence in sequences):
        for number, (lane, sequence) in enumerate(zip(lanes, sequences, strict=True), 1):
            if not sequence.finished:
                event = lane.wait(10)
                assert isinstance(event, Commit)
                assert event.answer == number
                assert sequence.commit(event) == event.tokens != ()
    assert [sequence.tokens for sequence in sequences] == [own_answer(params) for params in seeded]


@pytest.mark.parametrize("how", ["close", "cancel", "open"])
def test_what_ends_one_of_several_leaves_the_others(verifier: Verifier, how: str) -> None:
    first, second, third = verifier, verifier.another(), verifier.another()
    for number, lane in enumerate((first, second, third), 1):
        lane.open(AnswerRequest(number, OBSERVATION, LONG, "autoregressive"))
        lane.wait(10)
    if how == "open":
        second.open(AnswerRequest(4, OBSERVATION, PARAMS, "autoregressive"))
    else:
        getattr(second, how)()
    if how == "cancel":
        with pytest.raises(Cancelled):
            drain(second.wait)
    for lane in (first, third):
        while not (event := lane.wait(10)).finished:  # type: ignore[union-attr]
            assert isinstance(event, Commit)
        lane.close()
    second.close()
    assert answer(verifier, 5).tokens == own_answer(PARAMS)
    assert answer(second, 6).tokens == own_answer(PARAMS)


def test_usage_is_of_ones_own_answer(verifier: Verifier, has_link: bool) -> None:
    lanes = verifier, verifier.another()
    for number, (lane, image) in enumerate(zip(lanes, (IMAGE, None), strict=True), 1):
        lane.open(AnswerRequest(number, Observation(image, "go"), PARAMS, "autoregressive"))
    for lane in lanes:
        while not (event := lane.wait(10)).finished:  # type: ignore[union-attr]
            assert isinstance(event, Commit)
        lane.close()
    with_image, without = (lane.usage for lane in lanes)
    assert (with_image.image_bytes >= len(IMAGE.jpeg)) == has_link
    assert without.image_bytes == 0
    assert (without.uplink_bytes > 0) == has_link
    assert without.downlink_bytes <= 1.5 * with_image.downlink_bytes


def test_hints_that_make_no_sense_do_no_harm(verifier: Verifier) -> None:
    verifier.open(AnswerRequest(1, OBSERVATION, PARAMS, "speculative"))
    verifier.submit(DraftMessage(1, 0, 7, 1, (0,), (0,)))
    verifier.submit(DraftMessage(1, 0, 0, 9, (0,), (8,)))
    verifier.submit(DraftMessage(2, 0, 0, 1, (0,), (0,)))
    verifier.submit(DraftMessage(1, 0, 0, 2, (0, 1, 1), (0, 2, 0)))
    event = verifier.wait(10)
    assert isinstance(event, Commit)
    assert event.tokens == own_answer(PARAMS)[: len(event.tokens)]


def test_without_a_hint_a_wait_ends_by_name(verifier: Verifier) -> None:
    verifier.open(AnswerRequest(1, OBSERVATION, PARAMS, "speculative"))
    with pytest.raises(CloudTimeout):
        verifier.wait(0.3)
    assert verifier.poll() is None


def test_cancel_is_heard_by_the_next_wait(verifier: Verifier) -> None:
    verifier.open(AnswerRequest(1, OBSERVATION, SamplingParams(max_tokens=4000), "autoregressive"))
    verifier.wait(10)
    thread = threading.Thread(target=verifier.cancel)
    thread.start()
    thread.join()
    with pytest.raises(Cancelled):
        drain(verifier.wait)
    assert answer(verifier, 2).tokens == own_answer(PARAMS)


def test_close_twice_is_close_once(verifier: Verifier) -> None:
    verifier.open(AnswerRequest(1, OBSERVATION, PARAMS, "autoregressive"))
    verifier.close()
    verifier.close()


def test_usage_is_that_of_the_newest_answer(verifier: Verifier, has_link: bool) -> None:
    assert answer(verifier, 1).tokens == own_answer(PARAMS)
    first = verifier.usage
    long = SamplingParams(temperature=1.0, max_tokens=400, seed=PARAMS.seed)
    assert len(answer(verifier, 2, long)) == 400
    second = verifier.usage
    assert answer(verifier, 3).tokens == own_answer(PARAMS)
    third = verifier.usage
    for usage in (first, second, third):
        assert (usage.uplink_bytes > 0, usage.downlink_bytes > 0) == (has_link, has_link)
        assert usage.image_bytes == 0
    assert (second.downlink_bytes > 5 * first.downlink_bytes) == has_link
    assert (second.downlink_bytes > 5 * third.downlink_bytes) == has_link


def test_usage_counts_the_image_apart(verifier: Verifier, has_link: bool) -> None:
    verifier.open(AnswerRequest(1, Observation(IMAGE, "go"), PARAMS, "autoregressive"))
    while not (event := verifier.wait(10)).finished:  # type: ignore[union-attr]
        assert isinstance(event, Commit)
    usage = verifier.usage
    verifier.close()
    size = len(IMAGE.jpeg) if has_link else 0
    assert size <= usage.image_bytes <= 1.2 * size
    assert usage.uplink_bytes < len(IMAGE.jpeg)
    assert (usage.uplink_bytes > 0) == has_link


def test_the_engines_result_says_what_the_verifier_says(verifier: Verifier, has_link: bool) -> None:
    clock = VirtualClock() if not isinstance(verifier, VirtualVerifier) else verifier.clock
    config = EngineConfig(strategy="autoregressive", params=PARAMS)
    engine = Engine(None, SilentCodec(), verifier, clock, config)
    *_, last = engine.answer(OBSERVATION)
    assert last.result
    assert (last.result.usage.uplink_bytes > 0) == has_link
    assert (last.result.usage.downlink_bytes > 0) == has_link


class Listener(Tracer):
    def __init__(self) -> None:
        self.told: list[object] = []
        self.waits = 0

    def opened(self, request: AnswerRequest) -> None:
        self.told.append(request)

    def sent(self, hint: Hint) -> None:
        self.told.append(hint)

    def waiting(self) -> None:
        self.waits += 1

    def received(self, event: Event) -> None:
        self.told.append(event)


def test_the_tracer_is_told_all_that_passes_and_nothing_twice(verifier: Verifier) -> None:
    listener, passed = Listener(), list[object]()
    request = AnswerRequest(1, OBSERVATION, PARAMS, "speculative")
    verifier.open(request, listener)
    sequence, node = Sequence(), 1
    while not sequence.finished:
        draft = DraftMessage(1, 0, len(sequence), node, (0, 1), (0, node))
        verifier.submit(draft)
        event = verifier.wait(10)
        assert isinstance(event, Commit)
        sequence.commit(event)
        passed += [draft, event]
        node += 2
    verifier.close()
    assert listener.told == [request, *passed]
    assert listener.waits == len(passed) // 2
    told = len(listener.told)
    assert answer(verifier, 2).tokens == own_answer(PARAMS)
    assert len(listener.told) == told, "a tracer is of one answer"


def test_the_clouds_are_those_that_there_are(verifier: Verifier) -> None:
    if isinstance(verifier, RemoteVerifier):
        assert verifier.clouds.startswith("tcp://127.0.0.1:")
    else:
        assert verifier.clouds == ""
    verifier.disconnect()
    verifier.disconnect()


def test_the_virtual_link_carries_the_real_protocols_bytes(tmp_path: Path) -> None:
    keys.generate(tmp_path)
    hardware = HardwareProfile("quick", 1.0, 5.0, 5.0, 9.0, 1.0)
    virtual = VirtualVerifier(TableModel(TARGET), hardware, LinkProfile("lan", 5.0), VirtualClock())
    request = AnswerRequest(1, OBSERVATION, PARAMS, "speculative")
    packer = codec.TokenPacker(virtual.target.card.vocab_size)
    draft = DraftMessage(1, 0, 0, 1, (0, 1), (0, 1))
    messages = (codec.open_message(request, packer, 0, ()), packer.client_message_to_wire(draft))
    sizes = [len(codec.encode(message)) for message in messages]
    virtual.open(request)
    virtual.submit(draft)
    event = virtual.wait(10)
    assert isinstance(event, Commit)
    down = len(codec.encode(packer.commit_to_wire(event)))
    assert virtual.usage == LinkUsage(sum(sizes) + 2 * OVERHEAD_BYTES, down + OVERHEAD_BYTES, 0)
    with cloud(tmp_path) as server, edge(server.address, tmp_path, hello=HELLO) as remote:
        remote.connect()
        remote.open(request)
        remote.submit(draft)
        assert isinstance(remote.wait(10), Commit)
        # A socket's edge also says for how long it is patient, and that it lives: some bytes more.
        assert 0 <= remote.usage.uplink_bytes - sum(sizes) < 100


def test_an_unknown_strategy_is_refused(verifier: Verifier) -> None:
    with pytest.raises(VsdError, match="hope"):
        open_and_wait(verifier)


def open_and_wait(verifier: Verifier) -> None:
    verifier.open(AnswerRequest(1, OBSERVATION, PARAMS, "hope"))
    verifier.wait(5)


def drain(wait: Callable[[float], object]) -> None:
    while True:
        wait(10)
