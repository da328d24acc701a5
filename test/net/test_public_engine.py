"""The public engine over real sockets: whatever ends an answer early ends it at the cloud as well."""

from __future__ import annotations

import _thread
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import vlm_spec_decode as vsd
from test.net.line import line_to
from test.net.test_service import StepwiseModel, eventually
from test.net.test_sockets import CLOCK, HELLO, cloud
from test.tables import POOR_DRAFT, TARGET, TableModel
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine as Decoder
from vlm_spec_decode.edge.engine import EngineConfig
from vlm_spec_decode.edge.factory import EdgeRuntime
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink

pytestmark = pytest.mark.net

TOKENS = 40
QUESTION = Observation(None, "go")


class Letters:
    def encode(self, text: str) -> Tokens:
        return ()

    def decode(self, tokens: Tokens) -> str:
        return "".join("abc"[token] for token in tokens)


def engine_at(address: str, folder: Path, give_up_s: float = 30.0) -> vsd.Engine:
    link = DealerLink(address, keys.edge_keys(folder), CLOCK)
    verifier = RemoteVerifier(link, HELLO, CLOCK, ProtocolTiming(give_up_s=give_up_s, handshake_s=30.0))
    verifier.connect(timeout_s=30.0)
    config = EngineConfig(
        strategy="autoregressive", params=SamplingParams(max_tokens=TOKENS, temperature=1.0)
    )
    decoder = Decoder(TableModel(POOR_DRAFT), Letters(), verifier, CLOCK, config)
    return vsd.Engine(EdgeRuntime(decoder, verifier, cast(Any, SimpleNamespace(sees=False)), ("table", "1")))


class Cloud:
    """A cloud that takes its time for every token, and what became of its sessions."""

    def __init__(self, target: StepwiseModel, address: str) -> None:
        self.target = target
        self.address = address

    @property
    def open(self) -> int:
        return sum(not context.closed for context in self.target.contexts)

    def gave_up(self) -> None:
        """The one session was freed, long before its answer could have ended."""
        eventually(lambda: bool(self.target.contexts) and not self.open)
        assert self.target.contexts[-1].calls < TOKENS - 10


@pytest.fixture
def slow(key_folder: Path) -> Iterator[Cloud]:
    target = StepwiseModel(TARGET)
    with cloud(key_folder, target) as server:
        yield Cloud(target, server.address)


@pytest.fixture
def engine(slow: Cloud, key_folder: Path) -> Iterator[vsd.Engine]:
    with engine_at(slow.address, key_folder) as engine:
        yield engine


def answers_again(engine: vsd.Engine) -> None:
    assert len(engine.ask("go").tokens) == TOKENS


def test_an_answer_comes_piece_by_piece_and_adds_up(engine: vsd.Engine) -> None:
    updates = list(engine.stream("go"))
    assert len(updates) > 10
    assert "".join(update.new_text for update in updates) == updates[-1].text
    tokens = tuple(token for update in updates for token in update.tokens)
    assert len(tokens) == TOKENS
    assert [update.is_final for update in updates] == [False] * (len(updates) - 1) + [True]
    assert updates[-1].result is not None
    assert updates[-1].result.tokens == tokens
    up = [update.usage.uplink_bytes for update in updates]
    assert 0 < up[0] <= up[-1]
    assert engine.ask("go").tokens == tokens, "the same seed, the same answer"


def test_leaving_the_loop_ends_the_answer_at_the_cloud(slow: Cloud, engine: vsd.Engine) -> None:
    for _ in engine.stream("go"):
        break
    slow.gave_up()
    answers_again(engine)


def test_an_exception_in_the_loops_body_ends_the_answer_at_the_cloud(slow: Cloud, engine: vsd.Engine) -> None:
    def loop() -> None:
        for _ in engine.stream("go"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    slow.gave_up()
    answers_again(engine)


def test_ctrl_c_while_waiting_ends_the_answer_at_the_cloud(slow: Cloud, engine: vsd.Engine) -> None:
    stream = engine.stream("go")
    next(stream)
    threading.Timer(0.15, _thread.interrupt_main).start()

    def wait() -> None:
        for _ in stream:
            pass

    with pytest.raises(KeyboardInterrupt):
        wait()
    slow.gave_up()
    answers_again(engine)


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 14, 20, 40, 80, 160])
def test_an_interrupt_at_any_call_of_ours_leaves_an_engine_that_answers(
    after: int, slow: Cloud, engine: vsd.Engine
) -> None:
    """A profiler raises the interrupt inside our own code, as a signal may at any bytecode."""
    import sys

    calls = 0

    def interrupt(frame: Any, event: str, arg: object) -> None:
        nonlocal calls
        if event == "call" and "/vlm_spec_decode/edge/" in frame.f_code.co_filename:
            calls += 1
            if calls == after + 1:
                sys.setprofile(None)
                raise KeyboardInterrupt

    def ask() -> None:
        sys.setprofile(interrupt)
        try:
            for _ in engine.stream("go"):
                pass
        finally:
            sys.setprofile(None)

    with pytest.raises(KeyboardInterrupt):
        ask()
    eventually(lambda: not slow.open)
    answers_again(engine)


def test_a_stream_that_nobody_holds_is_closed(slow: Cloud, engine: vsd.Engine) -> None:
    stream = engine.stream("go")
    next(stream)
    del stream
    gc.collect()
    slow.gave_up()
    answers_again(engine)


def test_a_stream_can_be_closed_twice_and_then_ends(slow: Cloud, engine: vsd.Engine) -> None:
    with engine.stream("go") as stream:
        next(stream)
        stream.close()
    slow.gave_up()
    assert list(stream) == []


def test_cancel_reaches_who_waits_in_another_thread(slow: Cloud, engine: vsd.Engine) -> None:
    error = in_thread(lambda: list(engine.stream("go")), engine.cancel, slow)
    assert type(error) is vsd.Cancelled
    slow.gave_up()
    answers_again(engine)


def test_close_reaches_who_waits_in_another_thread(slow: Cloud, engine: vsd.Engine) -> None:
    error = in_thread(lambda: list(engine.stream("go")), engine.close, slow)
    assert type(error) is vsd.EngineClosed
    slow.gave_up()


def in_thread(ask: Callable[[], object], then: Callable[[], object], slow: Cloud) -> BaseException | None:
    """Ask in another thread, do something once the cloud has an answer open; return what the thread got."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except vsd.VsdError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: slow.open == 1)
    then()
    thread.join(timeout=10)
    assert not thread.is_alive()
    return raised[0] if raised else None


def test_a_closed_engine_refuses_by_name_and_closes_again(slow: Cloud, key_folder: Path) -> None:
    engine = engine_at(slow.address, key_folder)
    stream = engine.stream("go")
    next(stream)
    engine.close()
    engine.close()
    slow.gave_up()
    for use in (lambda: engine.stream("go"), lambda: engine.ask("go"), lambda: next(stream)):
        with pytest.raises(vsd.EngineClosed):
            use()
    engine.cancel()


def test_the_with_block_ends_the_answer_when_it_raises(slow: Cloud, key_folder: Path) -> None:
    def run() -> None:
        with engine_at(slow.address, key_folder) as engine:
            stream = engine.stream("go")
            next(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    slow.gave_up()


def test_one_answer_too_many_is_refused_by_name_from_any_thread(slow: Cloud, engine: vsd.Engine) -> None:
    refused: list[vsd.EngineBusy] = []

    def ask_too() -> None:
        with pytest.raises(vsd.EngineBusy, match="'go' is still open in thread") as caught:
            engine.ask("come")
        refused.append(caught.value)

    streams = [engine.stream("go") for _ in range(engine.max_answers)]
    for stream in streams:
        next(stream)
    ask_too()
    thread = threading.Thread(target=ask_too)
    thread.start()
    thread.join(timeout=10)
    assert len(refused) == 2
    for stream in streams:
        assert len([update for update in stream if update.is_final]) == 1, "the open answers went on"
    answers_again(engine)


def test_answers_at_the_same_time_are_those_asked_alone(slow: Cloud, engine: vsd.Engine) -> None:
    alone = engine.ask("go").tokens
    streams = [engine.stream("go") for _ in range(3)]
    tokens: list[Tokens] = [() for _ in streams]
    for updates in zip(*streams, strict=True):
        for number, update in enumerate(updates):
            tokens[number] += update.tokens
    assert tokens == [alone] * 3
    eventually(lambda: not slow.open)


def test_closing_one_stream_leaves_the_others(slow: Cloud, engine: vsd.Engine) -> None:
    first, second, third = (engine.stream("go") for _ in range(3))
    for stream in (first, second, third):
        next(stream)
    second.close()
    eventually(lambda: slow.open == 2)
    assert list(second) == []
    for stream in (first, third):
        assert [update.is_final for update in stream][-1]
    eventually(lambda: not slow.open)


def test_cancel_ends_all_open_answers_and_close_of_a_stream_from_outside_only_that(
    slow: Cloud, engine: vsd.Engine
) -> None:
    ended: dict[str, str] = {}

    def read(name: str, stream: vsd.AnswerStream) -> None:
        try:
            ended[name] = "finished" if list(stream)[-1].is_final else "cut"
        except vsd.Cancelled:
            ended[name] = "cancelled"

    streams = {name: engine.stream(name) for name in ("one", "two", "three")}
    threads = [threading.Thread(target=read, args=each) for each in streams.items()]
    for thread in threads:
        thread.start()
    eventually(lambda: slow.open == 3)
    streams["two"].close()
    eventually(lambda: slow.open == 2)
    eventually(lambda: bool(ended))  # its reader may still be on its way out
    assert ended == {"two": "cancelled"}
    engine.cancel()
    for thread in threads:
        thread.join(timeout=10)
    assert ended == {"one": "cancelled", "two": "cancelled", "three": "cancelled"}
    answers_again(engine)


def test_two_threads_at_one_stream_are_told_apart(slow: Cloud, engine: vsd.Engine) -> None:
    """Both ask for updates until one is refused; whichever it is, it is told by name."""
    stream = engine.stream("go")
    refused: list[str] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except vsd.EngineBusy as error:
            refused.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=30)
        assert not reader.is_alive()
    assert refused == ["another thread already waits for the answer to 'go'"]


def test_a_cloud_that_is_lost_is_named_and_the_next_question_finds_it_again(key_folder: Path) -> None:
    with (
        cloud(key_folder, StepwiseModel(TARGET)) as server,
        line_to(server.address) as line,
        engine_at(line.address, key_folder, give_up_s=3.0) as engine,
    ):
        stream = engine.stream("go")
        next(stream)
        line.cut()
        with pytest.raises(vsd.CloudUnreachable):
            list(stream)
        line.mend()
        answers_again(engine)
