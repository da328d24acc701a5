"""The simulator on a real DDS domain, met by the SDK's own clients in processes of their own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test.simulator import complaints, dds_domain, end, launch, run_client, simulator
from vlm_spec_decode.core.errors import ConfigError, SceneError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.app import run
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.scene import Scene, dump_scene
from vlm_spec_decode.sim.settings import SimConfig

pytestmark = [pytest.mark.dds, pytest.mark.sim]

CLIENT = """
import json, sys, time
from unitree_sdk2py.core.channel import ChannelFactoryInitialize, ChannelSubscriber
from unitree_sdk2py.go2.obstacles_avoid.obstacles_avoid_client import ObstaclesAvoidClient
from unitree_sdk2py.comm.motion_switcher.motion_switcher_client import MotionSwitcherClient
from unitree_sdk2py.go2.sport.sport_client import SportClient
from unitree_sdk2py.go2.video.video_client import VideoClient
from unitree_sdk2py.idl.unitree_go.msg.dds_ import LowState_, SportModeState_

ChannelFactoryInitialize(int(sys.argv[1]), "lo")
out, states, fast, lows = {}, [], [], []
topics = [
    ("rt/lf/sportmodestate", SportModeState_, states),
    ("rt/sportmodestate", SportModeState_, fast),
    ("rt/lf/lowstate", LowState_, lows),
]
subscribers = []
for name, kind, kept in topics:
    subscribers.append(ChannelSubscriber(name, kind))
    subscribers[-1].Init(kept.append, 0)

def client(kind, timeout_s=2.0):
    made = kind()
    made.SetTimeout(timeout_s)
    made.Init()
    return made

def wait(done, seconds):
    end_s = time.monotonic() + seconds
    while not (states and done(states[-1])):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True

def walk(seconds, send):
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        send(0.5, 0.0, 0.0)
        time.sleep(0.05)
"""

SPORT = (
    CLIENT
    + """
sport = client(SportClient)
out["version"] = sport.GetServerApiVersion()
out["first"] = wait(lambda s: s.error_code == 1001, 2.0)
out["stand_up"] = [sport.StandUp(), wait(lambda s: s.error_code == 1002, 4.0)]
x0 = states[-1].position[0]
walk(0.6, sport.Move)
out["locked_x"] = states[-1].position[0] - x0
out["balance"] = [sport.BalanceStand(), wait(lambda s: s.error_code == 1013, 3.0)]
begin = time.monotonic()
stamp0, count0, fast0 = states[-1].stamp, len(states), len(fast)
walk(1.5, sport.Move)
out["walk_code"] = states[-1].error_code
out["lf_hz"] = (len(states) - count0) / (time.monotonic() - begin)
out["hf_hz"] = (len(fast) - fast0) / (time.monotonic() - begin)
stamp1 = states[-1].stamp
out["stamp_s"] = stamp1.sec - stamp0.sec + 1e-9 * (stamp1.nanosec - stamp0.nanosec)
out["stop"] = sport.StopMove()
out["still"] = wait(lambda s: abs(s.velocity[0]) < 0.02 and s.error_code == 1013, 3.0)
out["x"] = states[-1].position[0] - x0
sport.Move(0.5, 0, 0)
out["hold_begins"] = wait(lambda s: s.velocity[0] > 0.3, 1.0)
out["hold_ends"] = wait(lambda s: s.velocity[0] == 0.0 and s.error_code == 1013, 2.5)
out["unknown"] = sport.LeftFlip()
out["bad"] = sport._Call(1015, "{nonsense")[0]
out["busy"] = [sport.Hello(), sport.Sit()]
out["acting"] = wait(lambda s: s.error_code == 1006, 1.0)
out["soc"], out["volts"] = lows[-1].bms_state.soc, lows[-1].power_v
print(json.dumps(out))
"""
)

OTHERS = (
    CLIENT
    + """
video, avoid, switcher = client(VideoClient), client(ObstaclesAvoidClient), client(MotionSwitcherClient)
sport = client(SportClient, 0.3)
code, data = video.GetImageSample()
open(sys.argv[2] if len(sys.argv) > 2 else "FRAME", "wb").write(bytes(data))
times = []
for _ in range(5):
    begin = time.monotonic()
    video.GetImageSample()
    times.append(time.monotonic() - begin)
out["frame"] = [code, max(times)]
out["recovered"] = [sport.RecoveryStand(), wait(lambda s: s.error_code == 1013, 4.0)]
out["avoid"] = [avoid.SwitchSet(True), avoid.SwitchGet()]
x0 = states[-1].position[0]
avoid.Move(0.5, 0.0, 0.0)
time.sleep(0.4)
out["without_authority"] = states[-1].position[0] - x0
avoid.UseRemoteCommandFromApi(True)
walk(0.8, avoid.Move)
out["with_authority"] = states[-1].position[0] - x0
avoid.UseRemoteCommandFromApi(False)
out["mode"] = switcher.CheckMode()
out["release"] = switcher.ReleaseMode()[0]
time.sleep(0.5)
count = len(states)
out["released"] = [sport.StopMove(), sport.Move(0.1, 0.0, 0.0)]
out["silent"] = len(states) == count
out["too_soon"] = switcher.SelectMode("normal")[0]
time.sleep(1.0)
out["selected"] = switcher.SelectMode("normal")[0]
time.sleep(0.5)
out["back"] = sport.StopMove()
print(json.dumps(out))
"""
)


@pytest.fixture(scope="module", name="room")
def _room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with free space ahead of the robot."""
    file = tmp_path_factory.mktemp("scene") / "room.yaml"
    ball = SceneObject("red ball", "ball", "red", 3.0, 0.3)
    dump_scene(Scene(0, 10.0, 8.0, (ball,), Pose2D(-2.0, 0.0, 0.0)), file)
    return file


@pytest.fixture(scope="module", name="served")
def _served(room: Path) -> Iterator[None]:
    with simulator(scene=str(room), reselect_s=1.2):
        yield


def test_the_sport_client_meets_a_go2(served: None) -> None:
    seen = run_client(SPORT, at_once=True)
    assert seen["version"] == [0, "1.0.0.1"]
    assert seen["first"] is True
    assert seen["stand_up"] == [0, True]
    assert seen["locked_x"] == 0.0
    assert seen["balance"] == [0, True]
    assert seen["walk_code"] == 1015
    assert seen["stop"] == 0
    assert seen["still"] is True
    assert 0.5 < float(str(seen["x"])) < 0.95
    assert seen["hold_begins"] is True
    assert seen["hold_ends"] is True
    assert seen["unknown"] == 3203
    assert seen["bad"] == 3204
    assert seen["busy"] == [0, 4206]
    assert seen["acting"] is True
    assert seen["soc"] == 94
    assert 30 < float(str(seen["volts"])) < 33
    # A loaded machine may be late, but the stamps keep the time.
    assert 1.2 < float(str(seen["stamp_s"])) < 1.8
    assert 8 < float(str(seen["lf_hz"])) < 22
    assert 12 < float(str(seen["hf_hz"])) < 55


def test_video_avoidance_and_mode_clients(served: None, tmp_path: Path) -> None:
    file = tmp_path / "front.jpg"
    seen = run_client(OTHERS.replace("FRAME", str(file)), at_once=True)
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == ("JPEG", (640, 360))
        assert np.asarray(picture).std() > 10
    code, slowest_s = json.loads(json.dumps(seen["frame"]))
    assert code == 0
    assert slowest_s < 1.0
    assert seen["recovered"] == [0, True]
    assert seen["avoid"] == [0, [0, True]]
    assert seen["without_authority"] == 0.0
    assert float(str(seen["with_authority"])) > 0.15
    assert seen["mode"] == [0, {"form": "0", "name": "mcf"}]
    assert seen["release"] == 0
    assert seen["released"] == [3102, 3102]
    assert seen["silent"] is True
    assert seen["too_soon"] == 7002
    assert seen["selected"] == 0
    assert seen["back"] == 0


def test_a_second_robot_on_the_domain_is_refused_by_name(served: None) -> None:
    second = launch()
    _, errors = second.communicate(timeout=20)
    assert second.returncode == 1
    assert complaints(errors).startswith("DomainBusy: a robot already serves 'sport'")


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"interface": "nope0"}, ConfigError, "no network interface 'nope0' here; there are: .*lo"),
        ({"domain": 233}, ConfigError, "domain 233 is not within 0 to 232"),
        ({"faults": ("meteor",)}, ConfigError, "unknown fault 'meteor'"),
        ({"start": "flying"}, ConfigError, "start 'flying'"),
        ({"width": 4000}, ConfigError, "width 4000"),
        ({"view": Path("/nowhere/at/all.png")}, ConfigError, "no folder"),
        ({"view": Path("picture.bmp")}, ConfigError, "picture.bmp"),
        ({"scene": Path("/nowhere.yaml")}, SceneError, "nowhere"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(SimConfig(**settings), lambda: True)


def test_ctrl_c_ends_it_cleanly_and_leaves_truth_and_picture(tmp_path: Path, room: Path) -> None:
    truth, view = tmp_path / "truth.json", tmp_path / "view.png"
    with simulator(scene=str(room), truth=str(truth), view=str(view), domain=dds_domain() + 60) as process:
        time.sleep(0.3)
        status, errors = end(process, signal.SIGINT)
    assert (status, errors) == (0, "")
    told = json.loads(truth.read_text())
    assert told["collisions"] == 0
    assert told["distances_m"]["red ball"] == pytest.approx(4.9, abs=0.2)
    with Image.open(view) as picture:
        assert picture.width == 960
