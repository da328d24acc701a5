"""The simulated Go2 as a process: room, robot, services and topics in real time (`vsd sim`).

Prints nothing; `on_ready` is called once it runs. The main thread steps the world at a steady rate, one
thread serves requests and one draws the camera's frames.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType

import mujoco

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.go2.dds import (
    DdsDomain,
    RequestServer,
    StatePublisher,
    open_domain,
    refuse_second_robot,
)
from vlm_spec_decode.sim.go2.robot import FaultSchedule, SimulatedRobot, parse_fault
from vlm_spec_decode.sim.go2.services import (
    AvoidService,
    Draw,
    Service,
    SportService,
    SwitcherService,
    VideoHub,
)
from vlm_spec_decode.sim.go2.state_machine import find_firmware
from vlm_spec_decode.sim.ground_truth import GroundTruth, PathRecorder, save_view
from vlm_spec_decode.sim.physics.physical_world import make_world
from vlm_spec_decode.sim.scene import load_scene, random_scene
from vlm_spec_decode.sim.settings import START_STATES, SimConfig

MAX_LAG_S = 0.25
"""A loop that is later than this starts a new schedule instead of catching up."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag while the block runs; main thread only."""
    asked = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def run(
    config: SimConfig,
    should_stop: Callable[[], bool],
    *,
    clock: Clock | None = None,
    on_ready: Callable[[], None] | None = None,
) -> GroundTruth:
    """Serve a simulated Go2 until `should_stop`, then save the requested files and return the ground truth.

    Raises ConfigError (settings, interface, domain), SceneError, or DomainBusy if a robot is already there.
    """
    clock = clock or WallClock()
    faults = FaultSchedule([parse_fault(text) for text in config.faults], clock.now())
    scene = load_scene(config.scene) if config.scene else random_scene(config.scene_seed)
    dds = open_domain(config.domain, config.interface)
    refuse_second_robot(dds, clock)
    world = make_world(scene, body=config.body, seed=config.seed)
    robot = SimulatedRobot(
        world,
        clock,
        faults,
        code=START_STATES[config.start],
        drift=config.drift,
        firmware=find_firmware(config.firmware),
    )
    path = PathRecorder()
    _serve(config, robot, dds, clock, path, should_stop, on_ready or (lambda: None))
    truth = path.finish(world)
    if config.truth:
        truth.save(config.truth)
    if config.view:
        save_view(world, truth, config.view)
    return truth


def _serve(
    config: SimConfig,
    robot: SimulatedRobot,
    dds: DdsDomain,
    clock: Clock,
    path: PathRecorder,
    should_stop: Callable[[], bool],
    on_ready: Callable[[], None],
) -> None:
    """Run the three threads; end all of them, also after an error."""
    avoid = AvoidService(robot)
    hub = VideoHub(lambda: _camera(robot, config))
    services = (SportService(robot), hub, avoid, SwitcherService(robot, reselect_s=config.reselect_s))
    server = RequestServer(
        dds, services, lambda: _services_on(robot, services), lambda: _drops_requests(robot)
    )
    publisher = StatePublisher(dds, time.time(), rate_hz=config.state_hz, lf_rate_hz=config.lf_state_hz)

    def beat() -> None:
        avoid.drive()
        robot.tick()
        with robot.drawing() as world:
            path.record(world)
        if not robot.fault("link_loss"):
            sport_on = robot.sport_on and not robot.fault("sport_off")
            publisher.publish(clock.now(), robot.snapshot, sport_on=sport_on)

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(server.run), pool.submit(hub.run)]
        try:
            while not ((server.is_open and hub.is_open) or _ended(workers)):
                clock.sleep(0.01)
            if not _ended(workers):
                on_ready()
            leaves = lingering(should_stop, clock, config.linger_s)
            _loop(config, clock, beat, lambda: leaves() or _ended(workers))
        finally:
            server.stop()
            hub.stop()
            publisher.close()
    for worker in workers:
        worker.result()


def _loop(config: SimConfig, clock: Clock, tick: Callable[[], None], should_stop: Callable[[], bool]) -> None:
    period_s = 1.0 / max(config.loop_hz, config.state_hz)
    due_s = clock.now()
    while not should_stop():
        tick()
        due_s += period_s
        late_s = clock.now() - due_s
        if late_s > MAX_LAG_S:
            due_s = clock.now()
        elif late_s < 0:
            clock.sleep(-late_s)


def lingering(should_stop: Callable[[], bool], clock: Clock, linger_s: float) -> Callable[[], bool]:
    """Return a function that becomes true `linger_s` after `should_stop` was first true."""
    asked_s = math.inf

    def leaves() -> bool:
        nonlocal asked_s
        if should_stop():
            asked_s = min(asked_s, clock.now())
        return clock.now() - asked_s >= linger_s

    return leaves


def _ended(workers: list[Future[None]]) -> bool:
    return any(worker.done() for worker in workers)


def _services_on(robot: SimulatedRobot, services: tuple[Service, ...]) -> frozenset[str]:
    """Return the names of the services that are on the network now."""
    names = frozenset(service.name for service in services)
    off = not robot.sport_on or robot.fault("sport_off") or robot.fault("burst_3102")
    return names - {SportService.name} if off else names


def _drops_requests(robot: SimulatedRobot) -> bool:
    return robot.fault("link_loss") or robot.fault("burst_3104")


@contextmanager
def _camera(robot: SimulatedRobot, config: SimConfig) -> Iterator[Draw]:
    """Open the front camera in this thread. It draws a copy of the world, which continues meanwhile."""
    with robot.drawing() as world:
        data = mujoco.MjData(world.model)
    camera = FrontCamera(world, config.width, config.height)

    def draw() -> bytes:
        with robot.drawing() as world:
            twin = copy.copy(world)
        # The copy shares the model, which is constant, and has its own data, which drawing changes.
        twin.data = data
        camera.attach(twin)
        return camera.jpeg(config.quality)

    try:
        yield draw
    finally:
        camera.close()
