"""Both ends of the protocol over a link that drops, repeats, delays, reorders, truncates and forgets.

No sockets, no threads, no wall time: every message is a step of a Hypothesis state machine, so a failure
shrinks to the few events that cause it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from test.tables import POOR_DRAFT, STOP, TARGET, TableModel
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.requests import BatchResult, JobResult, ServerJob
from vlm_spec_decode.core.errors import CloudRefused
from vlm_spec_decode.core.types import (
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
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.protocol.messages import Hello

PEER = b"robot"
HELLO = Hello("test", "tokens", "prompt", "grammar", 3)
PARAMS = SamplingParams(temperature=1.0, max_tokens=10, stop_ids=(STOP,), seed=5)


def own_answer(params: SamplingParams) -> Tokens:
    context = TableModel(TARGET).open(Observation(None, "go"))
    said: Tokens = ()
    while len(said) < params.max_tokens and (not said or said[-1] not in params.stop_ids):
        said += (pick(context.score(said)[0], len(said), params),)
    return said


class Pair:
    """An edge that decodes speculatively and two clouds, joined by two queues of bytes."""

    def __init__(
        self, image_bytes: int = 20_000, seed: int = 5, timing: ProtocolTiming | None = None
    ) -> None:
        self.now_s = 0.0
        self.params = SamplingParams(temperature=1.0, max_tokens=10, stop_ids=(STOP,), seed=seed)
        self.edge = ClientProtocol(HELLO, timing or ProtocolTiming(give_up_s=1e9, busy_s=1e9), clouds=2)
        self.target = TableModel(TARGET)
        self.clouds = [self.new_cloud(), self.new_cloud()]
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.sequence = Sequence()
        self.drop_chunks = 0
        self.node = 1
        self.drafter = TableModel(POOR_DRAFT).open(Observation(None, "go"))
        image = Image(bytes(range(256)) * (image_bytes // 256), 640, 360) if image_bytes else None
        self.request = AnswerRequest(1, Observation(image, "go"), self.params, "speculative")
        self.edge.connect(0.0)
        self.edge.open(self.request, 0.0)
        self.draft()
        self.collect()

    def new_cloud(self) -> ServerProtocol:
        return ServerProtocol(self.target.card, "grammar")

    @property
    def cloud(self) -> ServerProtocol:
        """The one that the edge speaks with."""
        return self.clouds[self.edge.cloud_index]

    def draft(self) -> None:
        chain: Tokens = ()
        while len(chain) < 3:
            prefix = self.sequence.tokens + chain
            chain += (pick(self.drafter.score(prefix)[0], len(prefix), self.params),)
        parents = chain_parents(self.node, 3)
        self.edge.submit(DraftMessage(1, 0, len(self.sequence), self.node, chain, parents))
        self.node += 3

    def collect(self) -> None:
        while self.edge.outbox:
            self.up.append(self.edge.outbox.popleft())
        for cloud in self.clouds:
            while cloud.outbox:
                peer, data = cloud.outbox.popleft()
                assert peer == PEER
                self.down.append(data)

    def deliver(self, is_up: bool, data: bytes) -> None:
        if is_up:
            self.cloud.receive(PEER, data, self.now_s)
        else:
            self.edge.receive(data, self.now_s)
        self.settle()

    def settle(self) -> None:
        while self.edge.events:
            event = self.edge.events.popleft()
            assert isinstance(event, Commit), event
            assert self.sequence.commit(event) == event.tokens
            if not self.sequence.finished:
                self.draft()
        self.collect()

    def work(self) -> None:
        """Do one thing that each cloud has to do: open an answer, or run a pass."""
        for cloud in self.clouds:
            job = cloud.next_open(self.now_s)
            if job:
                result = JobResult(context=self.target.open(job.request.observation))
                cloud.finish(BatchResult((job,), (result,)), self.now_s)
            elif jobs := cloud.next_batch(self.now_s):
                cloud.finish(BatchResult(jobs, tuple(map(self.run, jobs))), self.now_s)
        self.collect()

    @staticmethod
    def run(job: ServerJob) -> JobResult:
        session = job.request.session
        return JobResult(scores=session.run(job.plan)) if job.plan and session else JobResult()

    def pass_time(self, duration_s: float) -> None:
        self.now_s += duration_s
        self.edge.tick(self.now_s)
        self.settle()


class HostileLink(RuleBasedStateMachine):
    """Whatever the link does, both ends hold prefixes of one answer, and in the end it arrives."""

    @initialize(seed=st.integers(0, 30), image_bytes=st.sampled_from([0, 512, 20_480]))
    def begin(self, seed: int, image_bytes: int) -> None:
        self.pair = Pair(image_bytes, seed)
        self.expected = own_answer(self.pair.params)

    def _queue(self, is_up: bool) -> deque[bytes]:
        return self.pair.up if is_up else self.pair.down

    @rule(is_up=st.booleans(), at=st.integers(0, 5))
    def deliver(self, is_up: bool, at: int) -> None:
        queue = self._queue(is_up)
        if queue:
            queue.rotate(-(at % len(queue)))
            self.pair.deliver(is_up, queue.popleft())

    @rule(is_up=st.booleans())
    def deliver_all(self, is_up: bool) -> None:
        for _ in range(len(self._queue(is_up))):
            self.pair.deliver(is_up, self._queue(is_up).popleft())

    @rule(is_up=st.booleans())
    def drop(self, is_up: bool) -> None:
        if self._queue(is_up):
            self._queue(is_up).popleft()

    @rule(is_up=st.booleans())
    def duplicate(self, is_up: bool) -> None:
        if self._queue(is_up):
            self._queue(is_up).append(self._queue(is_up)[0])

    @rule(is_up=st.booleans(), keep=st.integers(0, 30))
    def truncate(self, is_up: bool, keep: int) -> None:
        if self._queue(is_up):
            self.pair.deliver(is_up, self._queue(is_up).popleft()[:keep])

    @rule(is_up=st.booleans(), data=st.binary(max_size=40))
    def garbage(self, is_up: bool, data: bytes) -> None:
        self.pair.deliver(is_up, b"\x01" + data)

    @rule()
    def work(self) -> None:
        self.pair.work()

    @rule(duration_s=st.sampled_from([0.05, 0.4, 2.0, 30.0]))
    def wait(self, duration_s: float) -> None:
        self.pair.pass_time(duration_s)

    @rule()
    def break_connection(self) -> None:
        """What a flipped bit does under CURVE: the message is no message, the connection begins anew."""
        self.pair.up.clear()
        self.pair.down.clear()

    @rule(which=st.integers(0, 1))
    def restart_cloud(self, which: int) -> None:
        self.pair.clouds[which] = self.pair.new_cloud()

    @rule(which=st.integers(0, 1), is_draining=st.booleans())
    def drain(self, which: int, is_draining: bool) -> None:
        self.pair.clouds[which].stats.is_draining = is_draining

    @rule()
    def expire_sessions(self) -> None:
        self.pair.cloud.expire(self.pair.now_s + 1e6)
        self.pair.collect()

    @invariant()
    def both_ends_hold_prefixes_of_the_answer(self) -> None:
        if not hasattr(self, "pair"):
            return
        said = self.pair.sequence.tokens
        assert said == self.expected[: len(said)]
        for entry in [e for cloud in self.pair.clouds for e in cloud.requests.values()]:
            if entry.session:
                held = entry.session.sequence.tokens
                assert held == self.expected[: len(held)]

    def teardown(self) -> None:
        """Once the link is kind again the answer arrives, whatever happened before."""
        if not hasattr(self, "pair"):
            return
        for cloud in self.pair.clouds:
            cloud.stats.is_draining = False
        for _ in range(400):
            if self.pair.sequence.finished:
                break
            self.deliver_all(True)
            self.pair.work()
            self.deliver_all(False)
            self.pair.pass_time(0.3)
        assert self.pair.sequence.tokens == self.expected


HostileLink.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHostileLink = HostileLink.TestCase


def run_kindly(pair: Pair, rounds: int = 200) -> None:
    for _ in range(rounds):
        while pair.up:
            pair.deliver(True, pair.up.popleft())
        pair.work()
        while pair.down:
            pair.deliver(False, pair.down.popleft())
        pair.pass_time(0.01)


def test_a_kind_link_needs_no_recovery_and_sends_the_image_once() -> None:
    pair = Pair(image_bytes=81_920)
    run_kindly(pair)
    assert pair.sequence.tokens == own_answer(pair.params)
    assert pair.edge.image_bytes == 81_920
    assert not pair.edge.dropped


def test_a_follow_up_on_the_same_frame_sends_no_image() -> None:
    pair = Pair(image_bytes=20_480)
    run_kindly(pair)
    request = AnswerRequest(2, pair.request.observation, pair.params, "autoregressive")
    pair.edge.open(request, pair.now_s)
    assert pair.edge.image_bytes == 0
    pair.sequence = Sequence()
    pair.collect()
    run_kindly(pair)
    assert pair.sequence.tokens == own_answer(pair.params)
    assert pair.edge.image_bytes == 0


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("tokenizer_digest", "other", "tokenizer_mismatch"),
        ("prompt_digest", "other", "prompt_mismatch"),
        ("grammar_digest", "other", "grammar_mismatch"),
        ("vocab_size", 4, "vocabulary_mismatch"),
    ],
)
def test_another_model_is_refused_by_name(field: str, value: object, reason: str) -> None:
    cloud = ServerProtocol(TableModel(TARGET).card, "grammar")
    edge = ClientProtocol(msgspec.structs.replace(HELLO, **{field: value}))
    edge.connect(0.0)
    cloud.receive(PEER, edge.outbox.popleft(), 0.0)
    edge.receive(cloud.outbox.popleft()[1], 0.0)
    error = edge.events.popleft()
    assert isinstance(error, CloudRefused)
    assert error.reason == reason


def test_an_image_that_is_not_the_one_named_is_refused() -> None:
    pair = Pair(image_bytes=512)
    pair.deliver(True, pair.up.popleft())
    pair.deliver(False, pair.down.popleft())
    messages = [m.replace(b"\x00\x01\x02\x03", b"\x00\x01\x02\x04", 1) if m[2] == 5 else m for m in pair.up]
    pair.up.clear()
    replies = []
    for data in messages:
        pair.cloud.receive(PEER, data, 0.0)
    while pair.cloud.outbox:
        replies.append(pair.cloud.outbox.popleft()[1])
    for data in replies:
        pair.edge.receive(data, 0.0)
    assert [e.reason for e in pair.edge.events if isinstance(e, CloudRefused)] == ["image_digest"]


def changed_once(pair: Pair, kind: type[wire.AnyMessage], field: str, value: int) -> Callable[[], bool]:
    """Change a number in the first message of a kind that crosses the link; return what tells if it came."""
    changed: list[bytes] = []
    deliver = pair.deliver

    def altered(is_up: bool, data: bytes) -> None:
        message = codec.decode(data)
        if isinstance(message, kind) and not changed and getattr(message, field) != value:
            changed.append(data)
            data = codec.encode(msgspec.structs.replace(message, **{field: value}))
        deliver(is_up, data)

    pair.deliver = altered  # type: ignore[method-assign]
    return lambda: bool(changed)


@pytest.mark.parametrize("size", [20_481, 20_480 + 4096, 24_000, 1 << 20])
def test_an_image_whose_size_the_line_has_made_larger_is_told_by_its_digest(size: int) -> None:
    """The edge has sent all that it has, and the cloud waits for more: the digest says that it is whole."""
    pair = Pair(image_bytes=20_480)
    is_changed = changed_once(pair, wire.Open, "image_bytes", size)
    run_patiently(pair)
    assert is_changed()
    assert pair.sequence.tokens == own_answer(pair.params)


@pytest.mark.parametrize("size", [1, 256, 4096, 20_479])
def test_an_image_whose_size_the_line_has_made_smaller_ends_the_answer_by_name(size: int) -> None:
    pair = Pair(image_bytes=20_480)
    is_changed = changed_once(pair, wire.Open, "image_bytes", size)
    refused: list[str] = []
    settle = pair.settle

    def settled() -> None:
        while pair.edge.events and isinstance(pair.edge.events[0], CloudRefused):
            refused.append(pair.edge.events.popleft().reason)  # type: ignore[union-attr]
        settle()

    pair.settle = settled  # type: ignore[method-assign]
    run_patiently(pair, lambda: bool(refused))
    assert is_changed()
    assert refused == ["image_digest"]


@pytest.mark.parametrize("received", [5000, 20_480, 1 << 24])
def test_an_acknowledgement_that_the_line_has_made_larger_is_taken_back(received: int) -> None:
    """Else the edge takes for arrived what is not, and both wait."""
    pair = Pair(image_bytes=20_480)
    is_changed = changed_once(pair, wire.ImageCredit, "received", received)
    pair.drop_chunks = 3
    run_patiently(pair)
    assert is_changed()
    assert pair.sequence.tokens == own_answer(pair.params)


def run_patiently(pair: Pair, is_over: Callable[[], bool] = lambda: False) -> None:
    """Run until the answer is there, or something else is, for at most ten seconds of the pair's clock."""
    while not (pair.sequence.finished or is_over()):
        assert pair.now_s < 10.0, "both ends wait"
        while pair.up:
            data = pair.up.popleft()
            if pair.drop_chunks and isinstance(codec.decode(data), wire.ImageChunk):
                pair.drop_chunks -= 1
                continue
            pair.deliver(True, data)
        pair.work()
        while pair.down:
            pair.deliver(False, pair.down.popleft())
        pair.pass_time(0.01)
