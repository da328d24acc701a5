"""Robots of several sites over real sockets: they go to the nearest cloud, and leave it when it is far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from test.net.line import Line, lines_to
from test.net.test_service import PATIENT_S, StepwiseModel, eventually, receive
from test.net.test_sockets import CLOCK, HELLO, IMAGE, cloud, decode, own_answer
from test.tables import TARGET
from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.types import AnswerRequest, Observation, SamplingParams
from vlm_spec_decode.edge import nearest, verifier_remote
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink

pytestmark = pytest.mark.net

PARAMS = SamplingParams(temperature=1.0, max_tokens=60, seed=3)
TIMING = ProtocolTiming(ping_s=0.1, give_up_s=PATIENT_S, busy_s=PATIENT_S, switch_cloud_s=PATIENT_S / 2)
NEAR_S, FAR_S = 0.001, 0.6


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure and decide more often, so that a test need not wait."""
    monkeypatch.setattr(verifier_remote, "PROBE_EVERY_S", 0.2)
    monkeypatch.setattr(nearest, "HOLD_S", 0.5)
    monkeypatch.setattr(nearest, "PINGS_S", 2.0)


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    keys.generate(tmp_path / "keys")
    return tmp_path / "keys"


class Sites:
    """Two clouds, each at the end of a line whose delay changes, and a robot."""

    def __init__(self, stack: ExitStack, folder: Path, second_folder: Path | None = None) -> None:
        folders = (folder, second_folder or folder)
        self.clouds: list[CloudServer] = [
            stack.enter_context(cloud(each, StepwiseModel(TARGET))) for each in folders
        ]
        self.lines: list[Line] = [
            stack.enter_context(lines_to(each.address, 1, (NEAR_S, NEAR_S)))[0] for each in self.clouds
        ]
        self.addresses = [line.address for line in self.lines]
        link = DealerLink(",".join(self.addresses), keys.edge_keys(folder), CLOCK)
        self.robot = RemoteVerifier(link, HELLO, CLOCK, TIMING, is_nearest=True)
        stack.callback(self.robot.disconnect)
        self.robot.connect(timeout_s=PATIENT_S)

    def delay(self, site: int, delay_s: float) -> None:
        """Let a site's line delay everything by so much, either way."""
        self.lines[site].delay_s = (delay_s, delay_s)

    @property
    def present(self) -> int:
        """Number of the site that the robot is at."""
        return self.addresses.index(self.robot.clouds.split(",")[0])


@pytest.fixture
def sites(key_folder: Path) -> Iterator[Sites]:
    with ExitStack() as stack:
        yield Sites(stack, key_folder)


def test_a_robot_moves_in_the_middle_of_an_answer_and_comes_back(sites: Sites) -> None:
    robot = sites.robot
    robot.open(AnswerRequest(1, Observation(IMAGE, "go"), PARAMS, "autoregressive"))
    said = receive(robot, 3)
    assert sites.present == 0
    sites.delay(0, FAR_S)
    assert tuple(receive(robot, 60, said)) == own_answer(PARAMS)
    eventually(lambda: sites.present == 1)
    robot.close()
    before = sites.clouds[1].protocol.stats.opened
    assert decode(robot, "hybrid", PARAMS, 2, IMAGE) == own_answer(PARAMS)
    assert sites.clouds[1].protocol.stats.opened == before + 1
    sites.delay(0, NEAR_S)
    sites.delay(1, FAR_S)
    eventually(lambda: sites.present == 0)
    assert decode(robot, "speculative", PARAMS, 3, IMAGE) == own_answer(PARAMS)


def test_the_cloud_that_was_left_is_told_so(sites: Sites) -> None:
    """Its session ends at once, not when it expires."""
    robot = sites.robot
    endless = SamplingParams(temperature=1.0, max_tokens=1000, seed=3)
    robot.open(AnswerRequest(1, Observation(None, "go"), endless, "autoregressive"))
    said = receive(robot, 3)
    sites.delay(0, FAR_S)
    eventually(lambda: sites.present == 1)
    assert len(said) < 1000
    receive(robot, len(said) + 100, said)
    eventually(lambda: len(sites.clouds[0].protocol.requests) == 0)
    assert len(sites.clouds[1].protocol.requests) == 1


def test_a_robot_stays_where_the_nearer_cloud_cannot_be_reached(
    key_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other cloud has other keys: it echoes, and its handshake never ends."""
    monkeypatch.setattr(verifier_remote, "PREPARE_S", 1.0)
    keys.generate(tmp_path / "others")
    with ExitStack() as stack:
        sites = Sites(stack, key_folder, tmp_path / "others")
        moves = sites.robot._connection._moves
        assert moves is not None
        sites.delay(0, FAR_S)
        eventually(lambda: moves._target == 1)
        eventually(lambda: moves._target is None)
        assert moves._nearest.ranking(CLOCK.now()) == (0, 1), "it is avoided"
        assert decode(sites.robot, "speculative", PARAMS, 1) == own_answer(PARAMS)
        assert sites.present == 0


def test_a_nearer_cloud_without_room_is_left_again_and_no_answer_is_lost(sites: Sites) -> None:
    limits = ServerLimits(sessions=0)
    sites.clouds[1].protocol._admission = type(sites.clouds[1].protocol._admission)(
        sites.clouds[1].protocol.card, "grammar", limits
    )
    robot = sites.robot
    robot.open(AnswerRequest(1, Observation(None, "go"), PARAMS, "autoregressive"))
    said = receive(robot, 3)
    sites.delay(0, FAR_S / 2)
    eventually(lambda: sites.clouds[1].protocol.stats.refused["sessions"] > 0)
    moves = robot._connection._moves
    assert moves is not None
    eventually(lambda: moves._nearest.ranking(CLOCK.now()) == (0, 1))
    assert tuple(receive(robot, 60, said)) == own_answer(PARAMS)
    robot.close()
    robot.open(AnswerRequest(2, Observation(None, "go"), PARAMS, "autoregressive"))
    assert tuple(receive(robot, 60)) == own_answer(PARAMS)


def test_without_the_choice_nothing_is_probed_and_the_order_holds(key_folder: Path) -> None:
    with ExitStack() as stack:
        sites = Sites(stack, key_folder)
        made = [line.made for line in sites.lines]
        link = DealerLink(",".join(sites.addresses), keys.edge_keys(key_folder), CLOCK)
        plain = RemoteVerifier(link, HELLO, CLOCK, TIMING)
        stack.callback(plain.disconnect)
        sites.robot.disconnect()
        CLOCK.sleep(0.5)
        made = [line.made for line in sites.lines]
        plain.connect(timeout_s=PATIENT_S)
        sites.delay(0, 0.1)
        assert decode(plain, "autoregressive", PARAMS, 1) == own_answer(PARAMS)
        CLOCK.sleep(1.0)
        assert [line.made - before for line, before in zip(sites.lines, made, strict=True)] == [1, 0]
        assert plain.clouds == ",".join(sites.addresses)
