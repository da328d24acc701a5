"""`vsd load`: synthetic robots over real sockets; every answer is compared with the lone robot's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from test.tables import POOR_DRAFT, STOP, TARGET, LetterCodec, TableModel
from vlm_spec_decode.bench.load import DraftIdentity, LoadFleet, Question, format_report, load
from vlm_spec_decode.bench.settings import LoadConfig, RobotBehaviour
from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudTimeout, ConfigError
from vlm_spec_decode.core.types import Image, Observation, SamplingParams
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.transport.router import RouterLink

pytestmark = pytest.mark.net

SPEECH = DraftIdentity(Hello("test", "tokens", "prompt", "grammar", 3), LetterCodec())
IMAGE = Image(bytes(range(256)) * 40, 640, 360)


def questions(count: int = 3) -> list[Question]:
    return [
        Question(Observation(IMAGE, "go"), SamplingParams(1.0, max_tokens=20, stop_ids=(STOP,), seed=seed))
        for seed in range(count)
    ]


@contextmanager
def cloud(target: TableModel, sessions: int = 64, bind: str = "tcp://127.0.0.1:*") -> Iterator[str]:
    link = RouterLink(bind, None)
    protocol = ServerProtocol(target.card, "grammar", ServerLimits(sessions=sessions))
    server = CloudServer(link, protocol, target, WallClock(), TableModel(POOR_DRAFT))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_all_robots_are_told_what_one_alone_is_told() -> None:
    with cloud(TableModel(TARGET)) as address:
        config = LoadConfig(cloud=address, robots=6, seconds=60, questions=40)
        report = load(config, questions(), SPEECH, WallClock()).report()
    assert (report["asked"], report["right"]) == (40, 40)
    assert report["goodput_answers_per_s"] == pytest.approx(40 / report["seconds"], rel=0.01)
    assert 0 < report["first_token_s"]["p50"] <= report["total_s"]["p99"]
    assert report["uplink_bytes"] > len(IMAGE.jpeg)
    assert "40 right, 0 wrong, 0 refused, 0 failed of 40" in format_report(report)


def test_a_cloud_that_says_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TableModel(TARGET)

    def turn_coat(fleet: LoadFleet) -> None:
        if len(fleet.asked) > 5:
            monkeypatch.setattr(target, "table", POOR_DRAFT)

    with cloud(target) as address:
        config = LoadConfig(cloud=address, robots=2, seconds=60, questions=60)
        report = load(config, questions(), SPEECH, WallClock(), turn_coat).report()
    assert report["wrong"] > 0
    assert report["right"] >= 6


def test_refusals_are_counted_by_name_and_the_rest_is_served() -> None:
    with cloud(TableModel(TARGET), sessions=1) as address:
        config = LoadConfig(
            cloud=address, robots=4, seconds=60, questions=40, behaviour=RobotBehaviour(back_off_s=0.01)
        )
        report = load(config, questions(), SPEECH, WallClock()).report()
    assert report["right"] + report["refused"] == 40
    assert report["right"] > 0
    assert report["reasons"] == ({"busy": report["refused"]} if report["refused"] else {})


def test_load_is_bounded_and_stays_on_this_machine() -> None:
    with pytest.raises(ConfigError, match="loopback"):
        LoadConfig(cloud="tcp://192.0.2.1:5557")
    for wrong in ({"robots": 0}, {"robots": 10**6}, {"seconds": 1e9}, {"questions": 0}):
        with pytest.raises(ConfigError):
            LoadConfig(cloud="tcp://127.0.0.1:5557", **wrong)


def test_nobody_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_spec_decode.bench.load.HANDSHAKE_S", 0.3)
    with pytest.raises(CloudTimeout, match="not welcomed"):
        load(LoadConfig(cloud="tcp://127.0.0.1:9"), questions(), SPEECH, WallClock())
