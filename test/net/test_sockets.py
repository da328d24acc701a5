"""The same protocol over real ZeroMQ sockets with CURVE, threads and all; the target is a table."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test.tables import CERTAIN_DRAFT, POOR_DRAFT, STOP, TARGET, TableContext, TableModel
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import Cancelled, CloudError, CloudRefused, CloudUnreachable, ConfigError
from vlm_spec_decode.core.profiles import LinkProfile
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    EarlyExitVerdict,
    Image,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.connection import HandshakeFailure
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.router import RouterLink

pytestmark = pytest.mark.net

HELLO = Hello("test", "tokens", "prompt", "grammar", 3)
CLOCK = WallClock()
IMAGE = Image(bytes(range(256)) * 200, 640, 360)


@contextmanager
def cloud(
    folder: Path | None, target: TableModel | None = None, bind: str = "tcp://127.0.0.1:*"
) -> Iterator[CloudServer]:
    target = target or TableModel(TARGET)
    link = RouterLink(bind, keys.cloud_keys(folder) if folder else None)
    server = CloudServer(link, ServerProtocol(target.card, "grammar"), target, CLOCK, TableModel(POOR_DRAFT))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(timeout=10)
        assert not thread.is_alive()


@contextmanager
def edge(
    address: str,
    folder: Path | None,
    profile: LinkProfile | None = None,
    hello: Hello = HELLO,
    give_up_s: float = 10.0,
) -> Iterator[RemoteVerifier]:
    edge_keys = keys.edge_keys(folder) if folder else None
    verifier = RemoteVerifier(
        DealerLink(address, edge_keys, CLOCK, profile), hello, CLOCK, ProtocolTiming(give_up_s=give_up_s)
    )
    try:
        yield verifier
    finally:
        verifier.disconnect()


def wait_for_ever(verifier: RemoteVerifier) -> None:
    while True:
        verifier.wait(10)


def own_answer(params: SamplingParams) -> Tokens:
    context = TableModel(TARGET).open(Observation(None, "go"))
    said: Tokens = ()
    while len(said) < params.max_tokens and (not said or said[-1] not in params.stop_ids):
        said += (pick(context.score(said)[0], len(said), params),)
    return said


def decode(
    verifier: RemoteVerifier, name: str, params: SamplingParams, answer: int, image: Image | None = None
) -> Tokens:
    observation = Observation(image, "go")
    verifier.open(AnswerRequest(answer, observation, params, name))
    sequence = Sequence()
    drafter = TableModel(POOR_DRAFT).open(observation)
    config = EdgeConfig(answer=answer, params=params, draft_length=3, timeout_s=20)
    streamed = tuple(itertools.chain(*strategy(name).edge(sequence, drafter, verifier, CLOCK, config)))
    verifier.close()
    return streamed


def test_every_strategy_says_the_same_over_sockets(key_folder: Path) -> None:
    with cloud(key_folder) as server, edge(server.address, key_folder) as verifier:
        verifier.connect()
        for answer, (name, seed) in enumerate(itertools.product(STRATEGIES, range(15)), start=1):
            params = SamplingParams(temperature=1.0, max_tokens=20, stop_ids=(STOP,), seed=seed)
            assert decode(verifier, name, params, answer, IMAGE) == own_answer(params)


def test_usage_counts_the_image_once_and_apart(key_folder: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=20, stop_ids=(STOP,), seed=1)
    with cloud(key_folder) as server, edge(server.address, key_folder) as verifier:
        verifier.connect()
        decode(verifier, "speculative", params, 1, IMAGE)
        first = verifier.usage
        decode(verifier, "speculative", params, 2, IMAGE)
        second = verifier.usage
    assert first.image_bytes == len(IMAGE.jpeg)
    assert second.image_bytes == 0
    assert 0 < second.uplink_bytes < 1500
    assert second.downlink_bytes > 0


def test_a_link_profile_delays_every_round_trip(key_folder: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, seed=1)
    slow = LinkProfile("slow", rtt_ms=80, up_mbps=5, down_mbps=5)
    with cloud(key_folder) as server, edge(server.address, key_folder, slow) as verifier:
        verifier.connect()
        started_s = time.monotonic()
        tokens = decode(verifier, "speculative", params, 1)
        elapsed_s = time.monotonic() - started_s
    assert tokens == own_answer(params)
    assert elapsed_s > 3 * 0.08


def test_wrong_keys_and_strangers_are_not_served(key_folder: Path, tmp_path: Path) -> None:
    keys.generate(tmp_path)
    (tmp_path / "cloud.key").write_bytes((key_folder / "cloud.key").read_bytes())
    with cloud(key_folder) as server:
        with (
            edge(server.address, tmp_path) as stranger,
            pytest.raises(CloudUnreachable, match="does not know our key"),
        ):
            stranger.connect(timeout_s=4.0)
        (tmp_path / "cloud.key").write_bytes((tmp_path / "edge.key").read_bytes())
        with (
            edge(server.address, tmp_path) as misled,
            pytest.raises(CloudUnreachable, match="the cloud's key is another"),
        ):
            misled.connect(timeout_s=4.0)
        with (
            edge(server.address, None) as unencrypted,
            pytest.raises(CloudUnreachable, match="one end encrypts, the other does not"),
        ):
            unencrypted.connect(timeout_s=4.0)
        with edge(server.address, key_folder) as friend:
            assert friend.connect().model_id == "table"


def test_another_model_is_refused_in_one_line(key_folder: Path) -> None:
    import msgspec

    other = msgspec.structs.replace(HELLO, tokenizer_digest="elsewhere")
    with (
        cloud(key_folder) as server,
        edge(server.address, key_folder, hello=other) as verifier,
        pytest.raises(CloudRefused, match="tokenizer_mismatch"),
    ):
        verifier.connect()


def test_nobody_there_is_unreachable(key_folder: Path) -> None:
    with (
        edge("tcp://127.0.0.1:9", key_folder) as verifier,
        pytest.raises(CloudUnreachable, match="no answer"),
    ):
        verifier.connect(timeout_s=0.8)


def test_a_port_that_is_taken_is_said_so(key_folder: Path) -> None:
    with cloud(key_folder) as server, pytest.raises(CloudError, match="cannot listen"):
        RouterLink(server.address, None)


def test_plaintext_never_leaves_loopback() -> None:
    with pytest.raises(ConfigError, match="only loopback"):
        RouterLink("tcp://0.0.0.0:5555", None)
    with pytest.raises(ConfigError, match="only loopback"):
        DealerLink("tcp://192.0.2.1:5555", None, CLOCK)
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        DealerLink("ipc:///etc/passwd", None, CLOCK)


class _SlowContext(TableContext):
    def score(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        time.sleep(0.02)
        return super().score(*args, **kwargs)


class _SlowModel(TableModel):
    def open(self, observation: Observation) -> TableContext:
        self.contexts.append(_SlowContext(self.table, self.num_exits))
        return self.contexts[-1]


def test_cancel_ends_a_wait_at_once_and_frees_the_cloud(key_folder: Path) -> None:
    params = SamplingParams(max_tokens=4000)
    target = _SlowModel(CERTAIN_DRAFT)
    with cloud(key_folder, target) as server, edge(server.address, key_folder) as verifier:
        verifier.connect()
        verifier.open(AnswerRequest(1, Observation(None, "go"), params, "autoregressive"))
        verifier.wait(5)
        threading.Timer(0.1, verifier.cancel).start()
        started_s = time.monotonic()
        with pytest.raises(Cancelled):
            wait_for_ever(verifier)
        assert time.monotonic() - started_s < 0.5
        deadline_s = time.monotonic() + 3
        while not target.contexts[0].closed and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert target.contexts[0].closed


def test_a_restarted_cloud_resumes_the_answer_where_it_was(key_folder: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=40, seed=3)
    observation = Observation(IMAGE, "go")
    received: list[int] = []
    with cloud(key_folder, _SlowModel(TARGET)) as first:
        address = first.address
        with edge(address, key_folder) as verifier:
            verifier.connect()
            verifier.open(AnswerRequest(1, observation, params, "autoregressive"))
            for _ in range(5):
                event = verifier.wait(5)
                assert isinstance(event, Commit)
                received += event.tokens
            first.stop()
            time.sleep(0.6)
            with cloud(key_folder, TableModel(TARGET), bind=address):
                while len(received) < 40:
                    event = verifier.wait(10)
                    assert isinstance(event, Commit)
                    assert event.start == len(received)
                    received += event.tokens
    assert tuple(received) == own_answer(params)


def test_a_cloud_that_dies_is_reported_within_the_deadline(key_folder: Path) -> None:
    params = SamplingParams(max_tokens=4000)
    with (
        cloud(key_folder, _SlowModel(CERTAIN_DRAFT)) as server,
        edge(server.address, key_folder, give_up_s=1.0) as verifier,
    ):
        verifier.connect()
        verifier.open(AnswerRequest(1, Observation(None, "go"), params, "autoregressive"))
        verifier.wait(5)
        server.stop()
        started_s = time.monotonic()
        with pytest.raises(CloudUnreachable, match="nothing heard"):
            wait_for_ever(verifier)
        assert time.monotonic() - started_s < 4


def test_keys_that_were_right_are_not_blamed_for_a_handshake_that_the_network_broke(
    key_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(max_tokens=4000)
    with (
        cloud(key_folder, _SlowModel(CERTAIN_DRAFT)) as server,
        edge(server.address, key_folder, give_up_s=1.0) as verifier,
    ):
        verifier.connect()
        verifier.open(AnswerRequest(1, Observation(None, "go"), params, "autoregressive"))
        verifier.wait(5)
        server.stop()
        monkeypatch.setattr(DealerLink, "failures", {HandshakeFailure.BROKEN})
        with pytest.raises(CloudUnreachable, match="a new handshake broke off") as caught:
            wait_for_ever(verifier)
        assert "key" not in str(caught.value)


def test_early_verdicts_arrive_before_the_commit_of_their_pass(
    key_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_spec_decode.strategies import speculative

    monkeypatch.setattr(speculative.Cloud, "wants_exits", True)
    target = TableModel(TARGET, num_exits=2)
    params = SamplingParams(temperature=1.0, max_tokens=8, seed=3)
    with cloud(key_folder, target) as server, edge(server.address, key_folder) as verifier:
        verifier.connect()
        verifier.open(AnswerRequest(1, Observation(None, "go"), params, "speculative"))
        verifier.submit(DraftMessage(1, 0, 0, 1, (0, 1, 0), (0, 1, 2)))
        events = [verifier.wait(5) for _ in range(3)]
    assert [type(e) for e in events] == [EarlyExitVerdict, EarlyExitVerdict, Commit]
    assert [e.exit_layer for e in events[:2]] == [0, 1]  # type: ignore[union-attr]


def test_key_files_are_private_and_never_overwritten(key_folder: Path) -> None:
    assert (key_folder / "cloud.key_secret").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="holds keys already"):
        keys.generate(key_folder)
    with pytest.raises(ConfigError, match="vsd keys"):
        keys.edge_keys(key_folder / "nowhere")
