"""What the driver leaves behind must not be called: a crash would take the whole node with it."""

from __future__ import annotations

import pytest

from test.simulator import run_client, simulator

pytestmark = [pytest.mark.dds, pytest.mark.sim]

PROGRAM = """
import ctypes, gc, json, os, sys, time
from vlm_spec_decode.robot.go2.driver import Go2Config, Go2Driver
from vlm_spec_decode.robot.go2.sdk import Go2Camera
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.robot.go2.sdk import acquire_client, release_client
from vlm_spec_decode.robot.go2.sdk import StateFeed, join
from unitree_sdk2py.go2.sport.sport_client import SportClient

config = Go2Config(domain=int(sys.argv[1]))
join(config.domain, config.interface)
StateFeed(WallClock(), config.state_topic, config.low_topic, 1.0)
gc.collect()
# Callbacks of our own take the place of freed ones, so that a call of those does not go unnoticed.
others = [ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: os._exit(9)) for _ in range(200)]
time.sleep(1.0)

frames = 0
for _ in range(4):
    driver, camera = Go2Driver(config), Go2Camera(config)
    driver.start()
    camera.frame()
    camera.close()
    driver.close()
    del driver, camera
    gc.collect()
    again = Go2Camera(config)
    for _ in range(5):
        again.frame()
        frames += 1
    again.close()
one, other = acquire_client(SportClient, 1.0), acquire_client(SportClient, 1.0)
release_client(one)
again = acquire_client(SportClient, 2.0) is one
print(json.dumps({"frames": frames, "apart": one is not other, "again": again}))
"""


def test_what_was_closed_and_collected_is_never_called_again() -> None:
    with simulator(scene_seed=3):
        assert run_client(PROGRAM, timeout_s=60.0) == {"frames": 20, "apart": True, "again": True}
