"""A console on a fake robot with a scripted engine, served on loopback; no model, no ROS."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import websockets.sync.client

from test.mission.scripted import ScriptedEngine
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.mission.connection import OwnedEngine
from vlm_spec_decode.mission.robot import Robot
from vlm_spec_decode.mission.service import MissionSettings
from vlm_spec_decode.mission.state import RunnerConfig
from vlm_spec_decode.robot.fake import SPEC, Disc, FakeCamera, FakeRobot
from vlm_spec_decode.robot.registry import RobotParts
from vlm_spec_decode.serve.access import AccessKeys, BindAddress, make_key
from vlm_spec_decode.serve.console.app import LIMITS, SUBPROTOCOL, Console
from vlm_spec_decode.serve.console.commands import ConsoleRobot
from vlm_spec_decode.serve.console.edge_robot import EdgeRobot
from vlm_spec_decode.serve.console.state import ConsoleState, RobotFacts
from vlm_spec_decode.serve.console.video import VideoFeed
from vlm_spec_decode.serve.server import HttpServer

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COMMANDER, VIEWER = "commander-0123456789", "viewer-0123456789abc"
KEYS = AccessKeys([make_key("commander", COMMANDER, ("command",)), make_key("viewer", VIEWER, ("view",))])
FENCE = ((-3.0, -3.0), (6.0, -3.0), (6.0, 3.0), (-3.0, 3.0))


class SlowRobot(ConsoleRobot):
    """A robot whose instructions take until `free`; its stop until `stops_end`, and it raises `fault`."""

    def __init__(self, name: str = "slow") -> None:
        self.state, self.video = ConsoleState(RobotFacts(name=name, title=name), WallClock()), VideoFeed()
        self.free, self.stops_end = threading.Event(), threading.Event()
        self.stops_end.set()
        self.stops = 0
        self.fault: Exception | None = None

    def instruct(self, instruction: str, *, approve: bool, queue: bool) -> None:
        self.free.wait(20)

    withdraw = approve = reply = release = drive = end_drive = lambda self, *_: None

    def stop(self) -> str:
        self.stops += 1
        self.stops_end.wait(20)
        if self.fault is not None:
            raise self.fault
        return "stopped"


class Rig:
    """The robot, its console, and the server. `script` is what the engine says (see `ScriptedEngine`).

    `capture` replaces the camera. The console shows `others`, too.
    """

    def __init__(
        self,
        script: list,
        capture: Callable | None = None,
        keys: AccessKeys = KEYS,
        others: Sequence[ConsoleRobot] = (),
    ) -> None:
        clock = WallClock()
        self.fake = FakeRobot(clock, discs=(Disc(2.5, 0.3),))
        self.fake.set_pose(0, 0, 0)
        self.fake.start = lambda: None  # it stands already
        self.stops_s: list[float] = []
        """When the driver was told to stop, by the monotonic clock."""
        stop = self.fake.stop

        def noted_stop() -> None:
            self.stops_s.append(time.monotonic())
            stop()

        self.fake.stop = noted_stop
        parts = RobotParts(driver=self.fake, open_camera=lambda: FakeCamera(self.fake, clock))
        self.robot = Robot(SPEC, parts, clock=clock, limits=SafetyLimits(geofence=FENCE))
        self.robot.start()
        self.engine = ScriptedEngine(script)
        settings = MissionSettings(runner=RunnerConfig(fallback="stop"))
        self.edge = EdgeRobot(self.robot, lambda _: OwnedEngine(self.engine), settings, capture=capture)
        self.console = Console([self.edge, *others], keys)
        self.server = HttpServer(self.console.app, BindAddress("127.0.0.1", 0), None, LIMITS, websockets=True)
        self.server.start()
        self.edge.start()

    @property
    def port(self) -> int:
        return self.server.port

    def link(self, token: str = COMMANDER) -> str:
        return f"{self.server.url}/#token={token}"

    @property
    def speed_mps(self) -> float:
        return self.fake.state().speed_mps

    def close(self) -> None:
        self.console.close()
        self.server.close()
        self.edge.close()
        self.robot.close()


@contextmanager
def rig(*script: list[str], **options: Any) -> Iterator[Rig]:
    """Serve a rig; `options` are those of `Rig`."""
    made = Rig(list(script), **options)
    try:
        yield made
    finally:
        made.close()


def wait_for(is_true: Callable[[], object], within_s: float = 8.0, what: str = "") -> float:
    """Wait until something is true; return the seconds it took."""
    began_s = time.monotonic()
    while not is_true():
        assert time.monotonic() - began_s < within_s, what or is_true
        time.sleep(0.004)
    return time.monotonic() - began_s


class Client:
    """A page as far as the server sees it."""

    def __init__(self, port, token=COMMANDER, kind="events", origin=None, robot="fake"):
        headers = {"Origin": origin} if origin else {}
        protocols = [SUBPROTOCOL, f"token.{token}"]
        self.connection = websockets.sync.client.connect(
            f"ws://127.0.0.1:{port}/api/{kind}/{robot}", subprotocols=protocols, additional_headers=headers
        )
        self.socket = self.connection.__enter__()
        self.events = []
        self.numbers = iter(range(1, 1000))

    def send(self, **message):
        self.socket.send(json.dumps(message))

    def until(self, is_it, within_s=8.0):
        """Return the first event, heard or to come, that `is_it` accepts."""
        until_s = time.monotonic() + within_s
        while True:
            for event in self.events:
                if is_it(event):
                    return event
            self.events += json.loads(self.socket.recv(timeout=max(0.01, until_s - time.monotonic())))

    def command(self, command, **fields):
        number = next(self.numbers)
        self.send(type="command", command=command, id=number, **fields)
        return self.until(lambda event: event["type"] in {"done", "refused"} and event["id"] == number)

    def close(self):
        self.socket.close()
