"""What the tests of the Go2 driver share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from test.simulator import dds_domain
from vlm_spec_decode.core.errors import RobotError
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver


@contextmanager
def driver(**settings: float) -> Iterator[Go2Driver]:
    made = Go2Driver(Go2Config(domain=dds_domain(), **settings))  # type: ignore[arg-type]
    try:
        made.start()
        yield made
    finally:
        with suppress(RobotError):
            made.close()


def wait(robot: Go2Driver, done: Callable[[RobotState], bool], within_s: float) -> bool:
    end_s = time.monotonic() + within_s
    while not done(robot.state()):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True
