"""The client protocol is a state machine: every state times every message, call and silence, by a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_spec_decode.core.errors import CloudBusy, CloudRefused, CloudUnreachable, ProtocolStateError
from vlm_spec_decode.core.types import AnswerRequest, DraftMessage, Observation, SamplingParams
from vlm_spec_decode.edge.client_protocol import TRANSITIONS, ClientProtocol, ClientState
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire

HELLO = wire.Hello("test", "tokens", "prompt", "grammar", 100)
WELCOME = wire.Welcome("target", "1", 4, (), 65536, 1 << 20, ("hybrid",))
REQUEST = AnswerRequest(1, Observation(None, "go"), SamplingParams(max_tokens=8), "speculative")
TIMING = ProtocolTiming(busy_s=5.0)
NEW, GREETING, READY = ClientState.NEW, ClientState.GREETING, ClientState.READY
ANSWERING, BACKING_OFF, FAILED = ClientState.ANSWERING, ClientState.BACKING_OFF, ClientState.FAILED

Input = Callable[[ClientProtocol, float], object]


def message(*parts: wire.AnyMessage | bytes) -> Input:
    def receive(edge: ClientProtocol, now_s: float) -> None:
        for part in parts:
            edge.receive(part if isinstance(part, bytes) else codec.encode(part), now_s)

    return receive


def silence(seconds: float) -> Input:
    def wait(edge: ClientProtocol, now_s: float) -> None:
        # Ticks come all the time: a long gap between two would mean that this process was suspended.
        for step in range(round(10 * seconds) + 1):
            edge.tick(now_s + step / 10)

    return wait


INPUTS: dict[str, Input] = {
    "connect": lambda edge, now_s: edge.connect(now_s),
    "open": lambda edge, now_s: edge.open(REQUEST, now_s),
    "close": lambda edge, now_s: edge.close(now_s),
    "draft": lambda edge, now_s: edge.submit(DraftMessage(1, 0, 0, 1, (5, 6), (0, 1))),
    "tick": silence(0.0),
    "a long silence": silence(11.0),
    "Welcome": message(WELCOME),
    "Welcome of another model": message(wire.Welcome("other", "1", 4, (), 65536, 1 << 20, ("hybrid",))),
    "hello_first": message(wire.Refused(0, 0, wire.HELLO_FIRST, "")),
    "handshake refused": message(wire.Refused(0, 0, "prompt_mismatch", "")),
    "answer refused": message(wire.Refused(1, 0, "invalid", "")),
    "other answer refused": message(wire.Refused(9, 0, "invalid", "")),
    "Busy": message(wire.Busy(0, 0, "draining", 2000)),
    "answer busy": message(wire.Busy(1, 0, "sessions", 2000)),
    "other answer busy": message(wire.Busy(9, 0, "sessions", 2000)),
    "Pong": message(wire.Pong(0, 1, 0, True)),
    "Pong, forgotten": message(wire.Pong(0, 1, 0, False)),
    "ImageCredit": message(wire.ImageCredit(1, 0, 4096)),
    "Commit": message(wire.WireCommit(1, 0, 0, bytes([5, 0]), 0, 1, False, 1000)),
    "Commit beyond a gap": message(wire.WireCommit(1, 0, 3, bytes([5, 0]), 0, 1, False, 1000)),
    "last Commit": message(wire.WireCommit(1, 0, 0, bytes([5, 0]), 0, 1, True, 1000)),
    "Early": message(wire.WireEarly(1, 0, 1, 2, 0, 5, 200)),
    "message of an edge": message(wire.Close(1, 0)),
    "another version": message(b"\x63\x93\x01\x02\x03"),
    "garbage": message(b"\x01garbage"),
}

BUSY, ANSWER_BUSY = INPUTS["Busy"], INPUTS["answer busy"]
PATHS: dict[str, tuple[Input, ...]] = {
    "new": (),
    "greeting": (INPUTS["connect"],),
    "greeting, an answer waits": (INPUTS["connect"], INPUTS["open"]),
    "ready": (INPUTS["connect"], INPUTS["Welcome"]),
    "answering": (INPUTS["connect"], INPUTS["Welcome"], INPUTS["open"]),
    "answering, committed": (INPUTS["connect"], INPUTS["Welcome"], INPUTS["open"], INPUTS["Commit"]),
    "backing off": (INPUTS["connect"], BUSY),
    "backing off, an answer waits": (INPUTS["connect"], INPUTS["Welcome"], INPUTS["open"], ANSWER_BUSY),
    "failed": (INPUTS["connect"], INPUTS["handshake refused"]),
}
"""How each situation is reached."""

NO_CLOUD = {
    "a long silence": FAILED,
    "handshake refused": FAILED,
    "hello_first": GREETING,
    "Busy": BACKING_OFF,
}
GREETED = {"Welcome": READY, "Welcome of another model": READY}
ENDS_ANSWER = {"close": READY, "answer refused": READY}
AFTER: dict[str, tuple[ClientState, dict[str, ClientState]]] = {
    "new": (NEW, {"connect": GREETING}),
    "greeting": (GREETING, {**NO_CLOUD, **GREETED}),
    "greeting, an answer waits": (
        GREETING,
        {
            **NO_CLOUD,
            "Welcome": ANSWERING,
            "Welcome of another model": ANSWERING,
            "answer busy": BACKING_OFF,
        },
    ),
    "ready": (READY, {**NO_CLOUD, "a long silence": READY, "open": ANSWERING}),
    "answering": (ANSWERING, {**NO_CLOUD, **ENDS_ANSWER, "answer busy": BACKING_OFF}),
    "answering, committed": (
        ANSWERING,
        {**NO_CLOUD, **ENDS_ANSWER, "answer busy": BACKING_OFF, "Welcome of another model": FAILED},
    ),
    # Its time comes after 2 s; the cloud that is greeted then is silent for 9 s more, which is not too long.
    "backing off": (BACKING_OFF, {**NO_CLOUD, "a long silence": GREETING, "open": GREETING}),
    "backing off, an answer waits": (
        BACKING_OFF,
        {**NO_CLOUD, "a long silence": GREETING, "open": ANSWERING},
    ),
    "failed": (FAILED, {"connect": GREETING, "open": GREETING}),
}
"""The state of each situation, and the inputs that lead to another."""


def reached(situation: str, timing: ProtocolTiming = TIMING) -> ClientProtocol:
    edge = ClientProtocol(HELLO, timing)
    for step in PATHS[situation]:
        step(edge, 0.0)
    return edge


def check(edge: ClientProtocol) -> None:
    """What holds in each state."""
    if edge.state in {READY, FAILED, NEW}:
        assert edge.request is None
    if edge.state is ANSWERING:
        assert edge.request
        assert edge.request.is_sent
    elif edge.request:
        assert not edge.request.is_sent
    if edge.is_welcome:
        assert edge.welcome
    if edge.state is GREETING:
        assert edge.welcome is None


@pytest.mark.parametrize("situation", PATHS)
@pytest.mark.parametrize("name", INPUTS)
def test_every_state_and_every_input(situation: str, name: str) -> None:
    edge, (state, steps) = reached(situation), AFTER[situation]
    assert edge.state is state
    check(edge)
    if (situation, name) == ("new", "open"):
        with pytest.raises(ProtocolStateError, match="before `connect`"):
            INPUTS[name](edge, 0.1)
    else:
        INPUTS[name](edge, 0.1)
    assert edge.state is steps.get(name, state)
    check(edge)


def test_all_situations_and_inputs_of_the_table_exist() -> None:
    assert AFTER.keys() == PATHS.keys()
    assert {name for _, steps in AFTER.values() for name in steps} <= INPUTS.keys()
    assert {state for state, _ in AFTER.values()} == set(ClientState) == TRANSITIONS.keys()
    handled = {wire.Welcome, wire.Refused, wire.Busy, wire.Pong, wire.ImageCredit, wire.WireCommit}
    kinds = {*wire.Message.__subclasses__(), *wire.AnswerMessage.__subclasses__()}
    assert {*handled, wire.WireEarly} <= kinds


@pytest.mark.parametrize(("start", "end"), list(itertools.product(ClientState, ClientState)))
def test_a_step_that_is_not_in_the_table_raises(start: ClientState, end: ClientState) -> None:
    edge = ClientProtocol(HELLO)
    edge.state = start
    if end in TRANSITIONS[start]:
        edge._enter(end)
        assert edge.state is end
        return
    with pytest.raises(ProtocolStateError, match=f"no step leads from {start.value} to {end.value}"):
        edge._enter(end)
    assert edge.state is start


@given(st.lists(st.tuples(st.sampled_from(sorted(INPUTS)), st.floats(0.0, 3.0)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_order_of_inputs_takes_a_step_that_is_not_in_the_table(steps: list[tuple[str, float]]) -> None:
    edge, now_s = ClientProtocol(HELLO, TIMING), 0.0
    for name, pause_s in steps:
        now_s += pause_s + (11.0 if name == "a long silence" else 0.0)
        before = edge.state
        if before is NEW and name == "open":
            continue
        INPUTS[name](edge, now_s)
        assert edge.state is before or before is not NEW or name == "connect"
        check(edge)


def test_each_end_of_an_answer_is_told_by_its_type() -> None:
    edge = reached("answering")
    INPUTS["answer refused"](edge, 0.1)
    assert isinstance(edge.events.popleft(), CloudRefused)
    edge = reached("answering")
    INPUTS["a long silence"](edge, 0.1)
    assert isinstance(edge.events.popleft(), CloudUnreachable)
    edge = reached("answering", ProtocolTiming(busy_s=0.05))
    ANSWER_BUSY(edge, 0.1)
    assert not edge.events
    ANSWER_BUSY(edge, 0.2)
    assert isinstance(edge.events.popleft(), CloudBusy)
    assert edge.request is None
    assert edge.state is BACKING_OFF


def test_an_answer_waits_for_the_welcome_and_goes_on_after_a_loss_with_what_is_committed() -> None:
    edge = reached("answering, committed")
    edge.outbox.clear()
    INPUTS["hello_first"](edge, 0.1)
    assert [type(codec.decode(data)) for data in edge.outbox] == [wire.Hello]
    edge.outbox.clear()
    INPUTS["Welcome"](edge, 0.2)
    (opened,) = map(codec.decode, edge.outbox)
    assert isinstance(opened, wire.Open)
    assert (opened.epoch, opened.committed) == (1, bytes([5, 0]))
