"""Degenerate messages of every sensor of the locomotion node: does the robot walk on, does the node die?

Most run in virtual time: the node's own subscriptions, gate and executor on a robot of arithmetic, message by
message. Some of each kind, and bytes that are no message at all, go to a real node process over ROS.

python benchmarks/hardening_sensors.py [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hardening_messages as messages
import rclpy
from figures import Figure, report
from hardening_messages import Case
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message, serialize_message
from unitree_sdk2py.idl.default import unitree_go_msg_dds__LowState_, unitree_go_msg_dds__SportModeState_

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.cmd_vel import VelocityRobot
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.robot.go2.codes import POSTURE_CODES
from vlm_spec_decode.robot.go2.link import StateMonitor
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.convert import to_quaternion
from vlm_spec_decode.ros.obstacle_sensors import ObstacleSensors, SensingDriver
from vlm_spec_decode.ros.operator_inputs import OperatorInputs
from vlm_spec_decode.ros.velocity_robot import VelocityTopics

PERIOD_S = 0.025
MESSAGE_S = 0.1
STOP_S = 1.5
"""From the first degenerate message until the robot must stand: the sensor's time-out, and braking."""
STILL_MPS = 0.02


@dataclass
class CaseCounts:
    """Results of the cases, by name of the case."""

    counts: dict[str, int] = field(default_factory=dict)
    walked_on: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        """Return the bars."""
        many = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        return [
            _figure("sensor_walks_on", self.walked_on, many),
            _figure("sensor_node_dead", self.died, many),
            _figure("sensor_not_named", self.unnamed, "degenerate or odd, and no word of it in /diagnostics"),
            _figure("sensor_good_refused", self.refused, "legal messages by which it did not walk"),
            Figure("sensor_fewest_cases", min(self.counts.values()), 60, "at least", "of any one sensor"),
        ]


def _figure(name: str, found: list[str], note: str) -> Figure:
    return Figure(name, len(found), 0, "at most", f"{note}; {'; '.join(found[:5])}" if found else note)


class Rig:
    """A simulated robot that walks by the messages of the node's own subscriptions, in virtual time."""

    def __init__(self, node: Any, clock: VirtualClock) -> None:
        self.node, self.clock = node, clock
        self.mission = 0

    def prepare(self, driver: Any, robot: FakeRobot) -> None:
        """Use a robot that stands at the origin."""
        self.robot = robot
        self.executor = Executor(driver, SafetyGate(), self.clock, runner=InlineCallRunner())

    def publish(self, topic: str, message: Any) -> None:
        """Pass a message to the subscriptions of a topic, serialized and deserialized as DDS does."""
        bytes_ = serialize_message(message)
        for subscription in self.node.subscriptions:
            if subscription.topic_name.rsplit("/", 1)[1] == topic:
                subscription.callback(deserialize_message(bytes_, subscription.msg_type))

    def now_s(self) -> float:
        """Return ROS time."""
        return float(self.node.get_clock().now().nanoseconds / 1e9)

    def steer(self, velocity: tuple[float, float, float]) -> bool:
        """Apply the velocity of an operator."""
        return self.executor.steer(velocity)

    def go(
        self,
        seconds: float,
        publish: Callable[[], None],
        *,
        submits_plan: bool = True,
        every_s: float = MESSAGE_S,
    ) -> float:
        """Advance the time with a message `every_s`; return the distance that the body moved."""
        x, y, _ = self.robot.true_pose
        self.mission += 1
        plan = Plan(f"m{self.mission}", 1, self.clock.now(), 1, (Forward(3.0),), True)
        for tick in range(round(seconds / PERIOD_S)):
            if tick % round(every_s / PERIOD_S) == 0:
                publish()
            if submits_plan:
                self.executor.submit(plan)
            self.executor.tick()
            self.clock.sleep(PERIOD_S)
        return math.dist((x, y), self.robot.true_pose[:2])

    @property
    def speed_mps(self) -> float:
        """The true speed of the body."""
        state = self.robot.state()
        return max(state.speed_mps, abs(state.vyaw_radps))


class SensorRig(Rig):
    """One obstacle sensor, and a robot whose state is good."""

    def __init__(self, node: Any, clock: VirtualClock, topic: str) -> None:
        super().__init__(node, clock)
        self.topic = topic
        self.surroundings = ObstacleSensors(node, clock)

    def fresh(self) -> None:
        """Start again, so much later that all former messages are too old."""
        self.clock.sleep(60.0)
        robot = FakeRobot(self.clock)
        robot.start()
        self.prepare(SensingDriver(robot, self.surroundings), robot)

    def publisher(self, case: Case) -> Callable[[], None]:
        """Return a function that publishes a case's message now."""
        return lambda: self.publish(self.topic, case.stamped(self.now_s()))

    @property
    def line(self) -> diagnostics.Health:
        """The sensor's line in the diagnostics."""
        return self.surroundings.lines("node")[0]


def _guarded(tally: CaseCounts, kind: str, case: str, act: Callable[[], None]) -> None:
    """Run one case; an error that comes out of the node's own code would have ended it."""
    tally.counts[kind] = tally.counts.get(kind, 0) + 1
    try:
        act()
    except Exception:  # noqa: BLE001  # any exception is counted
        tally.died.append(f"{kind}: {case}: {traceback.format_exc().splitlines()[-1]}")


SENSORS = {
    "scan": (messages.bad_scans, messages.free_scans, messages.walls_in_scans),
    "depth": (messages.bad_depths, messages.free_depths, messages.walls_in_depths),
    "points": (messages.bad_clouds, messages.free_clouds, messages.walls_in_clouds),
}


def obstacle_sensor(tally: CaseCounts, context: Any, kind: str, every: int = 1) -> None:
    """Run every degenerate message of one obstacle sensor, and the controls."""
    bad, free, walls = SENSORS[kind]
    node = _node(context, kind, **{f"{kind}_topic": kind})
    rig = SensorRig(node, VirtualClock(1000.0), kind)
    good = rig.publisher(next(iter(free())))
    for case in free():
        rig.fresh()
        if rig.go(2.0, rig.publisher(case)) < 0.3:
            tally.refused.append(f"{kind}: {case.name}")
        odd = "no stamp" in case.name or "nothing within" in case.name
        if (rig.line.level == diagnostics.WARN) != odd:
            tally.unnamed.append(f"{kind}: {case.name}")
    for case in [*list(bad())[::every], *walls()]:
        is_wall = case in list(walls())
        _guarded(tally, kind, case.name, lambda case=case: _bad_sensor(tally, rig, kind, case, good))
        if not is_wall and rig.line.level not in (diagnostics.ERROR, diagnostics.STALE):
            tally.unnamed.append(f"{kind}: {case.name}")
    node.destroy_node()


def _bad_sensor(tally: CaseCounts, rig: SensorRig, kind: str, case: Case, good: Callable[[], None]) -> None:
    publish = rig.publisher(case)
    rig.fresh()
    began = rig.go(STOP_S, publish) > STILL_MPS
    rig.fresh()
    if rig.go(1.5, good) < 0.3:
        tally.refused.append(f"{kind}: good before {case.name}")
    rig.go(STOP_S, publish)
    if rig.speed_mps > STILL_MPS or rig.go(1.0, publish) > STILL_MPS or began:
        tally.walked_on.append(f"{kind}: {case.name}")


class ListenerDriver:
    """A `RobotDriver` with the body of the fake, and the state that a listener made from messages."""

    def __init__(self, robot: FakeRobot, state: Callable[[], RobotState]) -> None:
        self.start, self.move, self.stop = robot.start, robot.move, robot.stop
        self.posture, self.look, self.close = robot.posture, robot.look, robot.close
        self.state = state


class StateRig(Rig):
    """A robot whose state comes from messages alone; `damage` is applied to each of them."""

    def __init__(self, node: Any, clock: VirtualClock, publish: Callable[[StateRig], None]) -> None:
        super().__init__(node, clock)
        self.damage: Callable[[Any], None] | None = None
        self._publish_state = publish
        self.listener: Any = None

    def fresh(self, listener: Any) -> None:
        """Start again, with a listener that has received nothing yet."""
        self.clock.sleep(60.0)
        robot = FakeRobot(self.clock)
        robot.start()
        self.listener, self.damage = listener, None
        self.prepare(
            ListenerDriver(robot, listener.state if hasattr(listener, "state") else listener.newest), robot
        )

    def walk(self, seconds: float) -> float:
        """As `Rig.go`; the state is published twenty times a second."""
        return self.go(seconds, lambda: self._publish_state(self), every_s=0.05)


def _judge_state(
    tally: CaseCounts,
    rig: StateRig,
    kind: str,
    name: str,
    listener: Callable[[], Any],
    damage: Callable[[Any], None],
) -> None:
    rig.fresh(listener())
    rig.damage = damage
    began = rig.walk(STOP_S) > STILL_MPS
    rig.fresh(listener())
    if rig.walk(1.5) < 0.3:
        tally.refused.append(f"{kind}: good before {name}")
    rig.damage = damage
    rig.walk(STOP_S)
    if rig.speed_mps > STILL_MPS or rig.walk(1.0) > STILL_MPS or began:
        tally.walked_on.append(f"{kind}: {name}")


def _publish_odometry(rig: StateRig) -> None:
    state, message = rig.robot.state(), Odometry()
    message.header.stamp = messages.to_time(state.stamp_s)
    message.pose.pose.position.x, message.pose.pose.position.y = state.x_m, state.y_m
    message.pose.pose.orientation = to_quaternion(0.0, 0.0, state.yaw_rad)
    twist = message.twist.twist
    twist.linear.x, twist.linear.y, twist.angular.z = state.vx_mps, state.vy_mps, state.vyaw_radps
    if rig.damage is not None:
        rig.damage(message)
    rig.publish("odom", message)


def odometry(tally: CaseCounts, context: Any, every: int = 1) -> None:
    """Run every damaged odometry of a robot behind cmd_vel."""
    node = _node(context, "odometry")
    rig = StateRig(node, VirtualClock(1000.0), _publish_odometry)

    def listener() -> VelocityRobot:
        for old in list(node.subscriptions):
            node.destroy_subscription(old)
        return VelocityTopics(node, rig.clock).robot

    for name, damage in list(messages.odometry_damages())[::every]:
        _guarded(
            tally,
            "odometry",
            name,
            lambda name=name, damage=damage: _judge_state(tally, rig, "odometry", name, listener, damage),
        )
    node.destroy_node()


def battery(tally: CaseCounts, context: Any, every: int = 1) -> None:
    """Run every charge at which walking is not allowed: the next action is refused."""
    node = _node(context, "battery", battery_topic="battery")
    rig = StateRig(node, VirtualClock(1000.0), _publish_odometry)

    def asked(case: Case) -> float:
        for old in list(node.subscriptions):
            node.destroy_subscription(old)
        rig.fresh(VelocityTopics(node, rig.clock).robot)
        rig.publish("battery", case.message)
        return rig.walk(1.5)

    for case in messages.good_batteries():
        if asked(case) < 0.3:
            tally.refused.append(f"battery: {case.name}")
    for case in list(messages.bad_batteries())[::every]:

        def run(case: Case = case) -> None:
            if asked(case) > STILL_MPS:
                tally.walked_on.append(f"battery: {case.name}")

        _guarded(tally, "battery", case.name, run)
    node.destroy_node()


SPORT = {
    "x": lambda m, v: m.position.__setitem__(0, v),
    "y": lambda m, v: m.position.__setitem__(1, v),
    "vx": lambda m, v: m.velocity.__setitem__(0, v),
    "vy": lambda m, v: m.velocity.__setitem__(1, v),
    "yaw_speed": lambda m, v: setattr(m, "yaw_speed", v),
    "roll": lambda m, v: m.imu_state.rpy.__setitem__(0, v),
    "pitch": lambda m, v: m.imu_state.rpy.__setitem__(1, v),
    "yaw": lambda m, v: m.imu_state.rpy.__setitem__(2, v),
}


def sport_damages() -> Iterator[tuple[str, Callable[[Any], None]]]:
    """What may be wrong with a Go2's own state, its battery included."""
    for (where, change), (name, value) in itertools.product(SPORT.items(), messages.BAD.items()):
        yield f"{where} {name}", lambda m, change=change, value=value: change(m, value)
    for value in (math.nan, -math.inf, -1.0, 0.0):
        yield (
            f"front range {value:g}",
            lambda m, value=value: setattr(m, "range_obstacle", [value, 8.0, 8.0, 8.0]),
        )
    for code in (0, 1, 99, 1001, 1002, 1007, 1008, 2007, 2011, 2016, 2077, 4013, 2**31, 2**32 - 1):
        yield f"state code {code}", lambda m, code=code: setattr(m, "error_code", code)
    for soc in (0, 5, 19, 101, 200, 255):
        yield f"charge {soc}", lambda m, soc=soc: setattr(m, "soc", soc)


def _publish_sport(rig: StateRig) -> None:
    state, sport, low = (
        rig.robot.state(),
        unitree_go_msg_dds__SportModeState_(),
        unitree_go_msg_dds__LowState_(),
    )
    sport.stamp.sec, sport.stamp.nanosec = int(state.stamp_s), int(1e9 * (state.stamp_s % 1.0))
    sport.error_code, sport.body_height = POSTURE_CODES[state.posture], state.body_height_m
    sport.position = [state.x_m, state.y_m, state.body_height_m]
    sport.velocity, sport.yaw_speed = [state.vx_mps, state.vy_mps, 0.0], state.vyaw_radps
    sport.imu_state.rpy, sport.range_obstacle = [0.0, 0.0, state.yaw_rad], [8.0] * 4
    sport.soc = 90  # type: ignore[attr-defined]  # carried along for the battery's own message
    if rig.damage is not None:
        rig.damage(sport)
    low.bms_state.soc = sport.soc  # type: ignore[attr-defined]
    rig.listener.on_low_state(low)
    rig.listener.on_sport_state(sport)


def sport_state(tally: CaseCounts, context: Any, every: int = 1) -> None:
    """Run every damaged state of a Go2. A charge is checked before an action, not during it."""
    node = _node(context, "sport")
    rig = StateRig(node, VirtualClock(1000.0), _publish_sport)

    def listener() -> StateMonitor:
        return StateMonitor(rig.clock, "rt/sportmodestate", 0.5)

    def run(name: str, damage: Callable[[Any], None]) -> None:
        if name.startswith("charge"):
            rig.fresh(listener())
            rig.damage = damage
            if rig.walk(STOP_S) > STILL_MPS:
                tally.walked_on.append(f"sport state: {name}")
            return
        _judge_state(tally, rig, "sport state", name, listener, damage)

    for name, damage in list(sport_damages())[::every]:
        _guarded(tally, "sport state", name, lambda name=name, damage=damage: run(name, damage))
    node.destroy_node()


def teleop(tally: CaseCounts, context: Any, every: int = 1) -> None:
    """Run every invalid velocity of an operator: the steered robot comes to rest."""
    node, clock = _node(context, "teleop"), VirtualClock(1000.0)
    rig = Rig(node, clock)
    OperatorInputs(node, SimpleNamespace(steer=rig.steer), clock, lambda _: None)  # type: ignore[arg-type]
    good = messages.Twist()
    good.linear.x = 0.4

    def run(case: Case) -> None:
        clock.sleep(60.0)
        robot = FakeRobot(clock)
        robot.start()
        rig.prepare(robot, robot)
        if rig.go(1.5, lambda: rig.publish("cmd_vel_teleop", good), submits_plan=False) < 0.3:
            tally.refused.append(f"teleop: good before {case.name}")
        rig.go(STOP_S, lambda: rig.publish("cmd_vel_teleop", case.message), submits_plan=False)
        if (
            rig.speed_mps > STILL_MPS
            or rig.go(1.0, lambda: rig.publish("cmd_vel_teleop", case.message)) > STILL_MPS
        ):
            tally.walked_on.append(f"teleop: {case.name}")

    for case in list(messages.bad_twists())[::every]:
        _guarded(tally, "teleop", case.name, lambda case=case: run(case))
    node.destroy_node()


def _node(context: Any, name: str, **parameters: Any) -> Any:
    overrides = [rclpy.Parameter(key, value=value) for key, value in parameters.items()]
    return rclpy.create_node(f"hardening_{name}", context=context, parameter_overrides=overrides)


def virtual(every: int = 1) -> CaseCounts:
    """Run every case that needs no process, or only each `every`th."""
    tally, context = CaseCounts(), rclpy.Context()
    rclpy.init(context=context)
    try:
        for kind in SENSORS:
            obstacle_sensor(tally, context, kind, every)
        for part in (odometry, battery, sport_state, teleop):
            part(tally, context, every)
    finally:
        rclpy.shutdown(context=context)
    return tally


def figures(quick: bool) -> list[Figure]:
    """Return the figures: all cases in virtual time, and some of each over ROS against a real process."""
    from hardening_sensors_node import over_ros

    found = virtual().figures()
    process = over_ros(1 if quick else 10)
    names = {figure.name: figure for figure in process}
    return [
        replace(f, value=f.value + names[f.name].value, note=f"{f.note}; over ROS: {names[f.name].note}")
        if f.name in names
        else f
        for f in found
    ]


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer cases over ROS")
    parser.add_argument("--out", type=Path, default=Path("out/hardening_sensors.json"))
    options = parser.parse_args()
    return report(figures(options.quick), options.out)


if __name__ == "__main__":
    sys.exit(main())
