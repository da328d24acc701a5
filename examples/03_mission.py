"""A mission: an engine and a robot carry out one instruction. No ROS, no network, no robot needed.

    python examples/03_mission.py

The robot is the one made of arithmetic, and both models are in this process. On a real Go2 two lines differ:

    Engine.connect("tcp://10.0.0.2:5557", keys="~/keys")        # a cloud started by `vsd cloud`
    Robot.connect("go2", interface="eth0")
"""

from __future__ import annotations

import vlm_spec_decode as vsd


def show(event: vsd.MissionEvent) -> None:
    """Print everything but the text that grows word by word."""
    if event.kind != "text":
        print(f"{event.kind:7}{event}")


def main() -> None:
    """Walk forward, and say where the robot is then."""
    with vsd.Engine.local() as engine, vsd.Robot.connect("fake") as robot:
        mission = vsd.Mission(engine, robot)
        result = mission.run("walk forward 1 metre", on_event=show, timeout_s=60)
        print(f"{result.status}: {' '.join(result.actions)}")
        print(f"the robot is at x = {robot.state.x_m:.1f} m")


if __name__ == "__main__":
    main()
