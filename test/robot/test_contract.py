"""The drivers that stand on the simulator keep the same contract as the fake one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from test.physical_body import needs_physical_body
from test.robot.contract import RobotDriverContract, ThreadedRobotDriverContract
from test.simulator import dds_domain, simulator
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import RobotError
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.physics.physical_world import PhysicalWorld
from vlm_spec_decode.sim.scene import Scene, write
from vlm_spec_decode.sim.world import World

EMPTY_ROOM = Scene(0, 8.0, 8.0, (), Pose2D(0.0, 0.0, 0.5))


@pytest.mark.sim
class TestHeadlessGo2(RobotDriverContract):
    world: type[World] = World

    @pytest.fixture
    def clock(self) -> Clock:
        return VirtualClock(5.0)

    @pytest.fixture
    def driver(self, clock: Clock) -> Iterator[RobotDriver]:
        go2 = HeadlessGo2(self.world(EMPTY_ROOM), clock)
        yield go2
        go2.close()


@needs_physical_body
class TestPhysicalGo2(TestHeadlessGo2):
    """The same promises from a body that walks on its legs under gravity."""

    world = PhysicalWorld


@pytest.fixture(scope="module", name="network")
def _network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    scene = tmp_path_factory.mktemp("contract") / "empty.yaml"
    write(EMPTY_ROOM, scene)
    with simulator(scene=str(scene)):
        yield scene


@pytest.fixture(scope="module", name="shared")
def _shared(network: Path) -> Iterator[Go2Driver]:
    made = Go2Driver(Go2Config(domain=dds_domain()))
    yield made
    with suppress(RobotError):
        made.close()


@pytest.mark.sim
@pytest.mark.dds
class TestGo2OverDds(ThreadedRobotDriverContract):
    """One simulator, and one driver but for the tests that close it; a robot left sitting is brought back."""

    @pytest.fixture
    def clock(self) -> Clock:
        return WallClock()

    @pytest.fixture
    def driver(self, shared: Go2Driver, request: pytest.FixtureRequest) -> Iterator[RobotDriver]:
        if "close" not in request.node.name:
            yield shared
            return
        own = Go2Driver(Go2Config(domain=dds_domain()))
        yield own
        with suppress(RobotError):
            own.close()
