"""What the service tells of itself: figures, records, health."""

from __future__ import annotations

import io
import itertools
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test.tables import POOR_DRAFT, STOP, TARGET, TableModel
from vlm_spec_decode.cloud import config as cloud_config
from vlm_spec_decode.cloud.config import HTTP_AUTO, CloudConfig
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.cloud.telemetry import health, logs
from vlm_spec_decode.cloud.telemetry.metrics import STALL_S, Gauges, MessageObserver, ServiceTelemetry
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import CloudError, ConfigError
from vlm_spec_decode.core.types import AnswerRequest, Language, Observation, SamplingParams
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import Hello, Refused, WireCommit, WireDraft
from vlm_spec_decode.transport.in_process import InProcessLink

SECRET = "walk past my safe"
PARAMS = SamplingParams(temperature=1.0, max_tokens=12, stop_ids=(STOP,), seed=3)
PACKER = codec.TokenPacker(3)
SETTINGS = CloudConfig(language=Language("grammar"), insecure=True, http="127.0.0.1:*", log_format="json")


def opening(answer: int = 1, epoch: int = 0, strategy: str = "autoregressive") -> bytes:
    request = AnswerRequest(answer, Observation(None, SECRET), PARAMS, strategy)
    return codec.encode(codec.open_message(request, PACKER, epoch, ()))


HELLO = codec.encode(Hello("test", "tokens", "prompt", "grammar", 3))


def receive(observer: MessageObserver, peer: bytes, data: bytes) -> None:
    observer.received(peer, len(data), codec.decode(data))


@contextmanager
def operated(config: CloudConfig = SETTINGS) -> Iterator[tuple[ServiceTelemetry, InProcessLink, CloudServer]]:
    target, mail = TableModel(TARGET), InProcessLink()
    operations = ServiceTelemetry(config, target.card, WallClock())
    protocol = ServerProtocol(target.card, "grammar", tracer=operations.observer)
    server = CloudServer(mail, protocol, target, WallClock(), TableModel(POOR_DRAFT))
    operations.gauges = lambda: Gauges(
        sessions=len(protocol.requests), peers=protocol.peers, unroutable=0, is_ready=not server.is_stopping
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield operations, mail, server
    finally:
        server.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()


def hear(mail: InProcessLink, kind: type, until=lambda message: True):
    """Return the first message of a kind; the limit is for a machine that is busy elsewhere."""
    for _ in range(60):
        for _peer, data in mail.collect(0.5):
            message = codec.decode(data)
            if isinstance(message, kind) and until(message):
                return message
    raise AssertionError(f"no {kind.__name__}")


def value(operations: ServiceTelemetry, name: str, **labels: str) -> float:
    found = operations.metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def test_an_answer_is_counted_and_told_without_what_was_asked() -> None:
    said = io.StringIO()
    handler = logs.set_up_logging("json", "debug", said)
    try:
        with operated() as (operations, mail, _):
            mail.deliver([(b"robot", HELLO), (b"robot", opening())])
            hear(mail, WireCommit, lambda commit: commit.finished)
            mail.deliver([(b"robot", codec.encode(WireDraft(9, 0, 0, 1, PACKER.pack((0, 1)))))])
            mail.deliver([(b"robot", b"\x01 no message"), (b"stranger", opening())])
            hear(mail, Refused)
    finally:
        logs.take_down_logging(handler)
    assert value(operations, "vsd_answers_opened_total", strategy="autoregressive") == 2
    assert value(operations, "vsd_answers_finished_total") == 1
    assert value(operations, "vsd_answer_seconds_count") == 1
    assert value(operations, "vsd_first_token_seconds_count") == 1
    assert value(operations, "vsd_tokens_drafted_total") == 2
    assert value(operations, "vsd_messages_total", direction="in", kind="unreadable") == 1
    assert value(operations, "vsd_refusals_total", reason="hello_first") == 1
    assert value(operations, "vsd_tokens_committed_total") == value(operations, "vsd_commit_tokens_sum") > 1
    records = [json.loads(line) for line in said.getvalue().splitlines()]
    by_message = {record["message"]: record for record in reversed(records)}
    assert {"hello", "opened", "committed", "finished", "refused"} <= by_message.keys()
    assert by_message["opened"]["session"] == by_message["finished"]["session"]
    assert by_message["committed"]["round"] >= 1
    assert by_message["refused"]["reason"] == "hello_first"
    assert SECRET not in said.getvalue()


def test_the_cloud_decodes_a_message_once_and_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, sent, decode = list[bytes](), list[object](), codec.decode
    with operated() as (operations, mail, server):
        monkeypatch.setattr(codec, "decode", lambda data: (decoded.append(bytes(data)), decode(data))[1])
        up = [HELLO, opening(), codec.encode(WireDraft(9, 0, 0, 1, PACKER.pack((0, 1)))), b"\x01 no message"]
        mail.deliver([(b"robot", data) for data in up])
        while not any(message.finished for message in sent if isinstance(message, WireCommit)):
            sent += [decode(data) for _peer, data in mail.collect(0.5)]
    assert decoded == up
    assert value(operations, "vsd_messages_total", direction="out", kind="WireCommit") >= 1
    assert server.protocol.stats.messages == len(up)


def test_a_full_disk_costs_the_log_and_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with Path("/dev/full").open("w") as full:
        handler = logs.set_up_logging("json", "debug", full)
        try:
            with operated() as (_, mail, _server):
                mail.deliver([(b"robot", HELLO), (b"robot", opening())])
                hear(mail, WireCommit, lambda commit: commit.finished)
        finally:
            logs.take_down_logging(handler)
            with pytest.raises(OSError, match="No space left"):
                full.flush()
            # What could not be written is given up, or closing the file would fail again.
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), full.fileno())
    assert "No space left" in capsys.readouterr().err


def test_the_wall_clock_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time of day that jumps (a robot that is told the date, a leap) moves no deadline and ends no answer."""
    days = itertools.cycle([-86_400.0, 0.0, 86_400.0])
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(days))
    with operated() as (operations, mail, _):
        mail.deliver([(b"robot", HELLO), (b"robot", opening())])
        hear(mail, WireCommit, lambda commit: commit.finished)
        assert not operations.unhealthy_reason()
    assert value(operations, "vsd_answers_finished_total") == 1
    assert 0 <= value(operations, "vsd_answer_seconds_sum") < 3600


def test_the_instruction_is_told_only_if_asked_for() -> None:
    said = io.StringIO()
    handler = logs.set_up_logging("text", "info", said)
    config = CloudConfig(language=Language("grammar"), insecure=True, log_content=True)
    try:
        operations = ServiceTelemetry(config, TableModel(TARGET).card, VirtualClock())
        receive(operations.observer, b"robot", opening())
    finally:
        logs.take_down_logging(handler)
    assert f"instruction={SECRET}" in said.getvalue()


def test_what_a_stranger_says_never_becomes_a_label_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlm_spec_decode.cloud.telemetry.metrics.MAX_FOLLOWED", 40)
    operations = ServiceTelemetry(SETTINGS, TableModel(TARGET).card, VirtualClock())
    for answer in range(1, 100):
        receive(operations.observer, b"robot", opening(answer, strategy=f"made up {answer}"))
    assert value(operations, "vsd_answers_opened_total", strategy="unknown") == 99
    text = "".join(str(family) for family in operations.metrics.registry.collect())
    assert "made up" not in text
    assert len(operations.observer._followed) == 40


def test_a_commit_that_is_said_again_is_counted_once_and_a_resumed_answer_from_where_it_was() -> None:
    clock = VirtualClock()
    operations = ServiceTelemetry(SETTINGS, TableModel(TARGET).card, clock)
    watch, peer = operations.observer, b"robot"
    request = AnswerRequest(1, Observation(None, "go"), PARAMS, "autoregressive")
    receive(watch, peer, codec.encode(codec.open_message(request, PACKER, 1, (0, 1))))
    clock.sleep(0.2)
    commit = WireCommit(1, 1, 2, PACKER.pack((0, 0, 1)), 0, 1, False, 40_000)
    for _ in range(3):
        watch.sent(peer, len(codec.encode(commit)), commit)
    assert value(operations, "vsd_answers_resumed_total") == 1
    assert value(operations, "vsd_tokens_committed_total") == 3
    assert value(operations, "vsd_pass_seconds_sum") == pytest.approx(0.04)
    assert value(operations, "vsd_first_token_seconds_sum") == pytest.approx(0.2)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_readiness_and_figures_over_http() -> None:
    clock = VirtualClock()
    operations = ServiceTelemetry(SETTINGS, TableModel(TARGET).card, clock)
    operations.gauges = lambda: Gauges(sessions=3, is_ready=True, dropped={"stale": 2})
    with operations.running() as url:
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/readyz") == (200, "ok\n")
        status, text = get(f"{url}/metrics")
        assert status == 200
        assert "vsd_sessions 3.0" in text
        assert 'vsd_dropped_total{reason="stale"} 2.0' in text
        assert get(f"{url}/etc/passwd")[0] == 404
        operations.gauges = Gauges
        assert get(f"{url}/readyz")[0] == 503
        assert get(f"{url}/healthz")[0] == 200
        clock.sleep(STALL_S + 1)
        assert get(f"{url}/healthz")[0] == 503
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/healthz", timeout=5)


def test_figures_stay_on_this_machine_and_a_port_that_was_asked_for_is_had_or_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for beyond in ("0.0.0.0:9464", "192.0.2.1:9464", "host.example:1"):
        with pytest.raises(ConfigError, match="this machine only"):
            health.http_address(beyond)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        health.http_address("here:there")
    assert health.http_address("auto") == ("127.0.0.1", 9464)
    assert health.http_address("9000") == ("127.0.0.1", 9000)
    assert health.http_address("[::1]:9000") == ("::1", 9000)
    registry = ServiceTelemetry(SETTINGS, TableModel(TARGET).card, VirtualClock()).metrics.registry
    first = health.HealthServer("127.0.0.1:*", registry, str, str)
    try:
        taken = first.url.removeprefix("http://")
        with pytest.raises(CloudError, match="cannot listen"):
            health.HealthServer(taken, registry, str, str)
        monkeypatch.setattr(cloud_config, "DEFAULT_HTTP", taken)
        with pytest.raises(CloudError, match="cannot listen"):
            health.HealthServer(cloud_config.DEFAULT_HTTP, registry, str, str)
        moved = health.HealthServer(HTTP_AUTO, registry, str, str)
        moved.close()
        assert moved.url != first.url
    finally:
        first.close()
