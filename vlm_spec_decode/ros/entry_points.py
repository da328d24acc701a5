"""The four node processes: which parts they put together. `nodes/` holds nothing but calls of these.

Each imports its own parts only when it runs: a camera node has no use for a model's libraries.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NoReturn

from rclpy.node import Node

from vlm_spec_decode.core import environment
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.environment_checks import ros_domain
from vlm_spec_decode.robot.go2.codes import StateTable
from vlm_spec_decode.robot.go2.config import Go2Config, check_middleware, check_network
from vlm_spec_decode.robot.lease import Board
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.ros.lifecycle import NodePart, StopRequest
from vlm_spec_decode.ros.params import DRIVER_PARAMETERS, ROBOT_PARAMETERS, SOURCE_PARAMETERS, Parameters
from vlm_spec_decode.ros.process import leave, run_node

STOP_S = 1.2
"""How long one stop may wait for the state to confirm it. The end of a node makes up to three, and whoever
started it kills it after some 5 s."""


def camera_main() -> int:
    """Run the camera node; return its exit code."""
    return run_node("camera_node", _camera)


def locomotion_main() -> int:
    """Run the locomotion node; return its exit code."""
    return run_node("locomotion_node", _locomotion, threads=6)


def monitor_main() -> int:
    """Run the monitor node; return its exit code."""
    return run_node("monitor_node", _monitor, threads=2)


def vlm_main() -> NoReturn:
    """Run the VLM node; end the process with its exit code."""
    leave(run_node("vlm_node", _vlm, threads=4))


def _camera(node: Node, _stop: StopRequest) -> NodePart:
    from vlm_spec_decode.ros.camera_sources import ROBOT, open_source
    from vlm_spec_decode.ros.nodes.camera import CameraNode

    config, clock = _robot(node), WallClock()
    source = Parameters(node, SOURCE_PARAMETERS).text("source")
    if source != ROBOT:
        camera = open_source(source, node, clock, config.interface or "")
        return CameraNode(node, lambda: camera, clock)
    from vlm_spec_decode.robot.go2.sdk import Go2Camera

    check_network(config.domain, config.interface)
    _check_middleware(config.domain, "sdk")
    return CameraNode(node, lambda: Go2Camera(config, clock), clock)


def _locomotion(node: Node, stop: StopRequest) -> NodePart:
    from vlm_spec_decode.ros.lease_topic import TopicBoard
    from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
    from vlm_spec_decode.ros.process_priority import PARAMETER, hurry
    from vlm_spec_decode.ros.velocity_robot import VelocityTopics

    settings = Parameters(node, DRIVER_PARAMETERS)
    config, clock = replace(_robot(node), states=StateTable.parse(settings.text("state_codes"))), WallClock()
    refused = hurry(Parameters(node, (PARAMETER,)).integer(PARAMETER.name))
    if refused:
        node.get_logger().info(refused)
    kind = settings.text("driver")
    if kind == "cmd_vel":
        topics = VelocityTopics(node, clock)
        boards, spec = (topics.board,), robot_kind("cmd_vel").spec
        return LocomotionNode(node, topics.robot, clock, stop, says_odometry=False, boards=boards, spec=spec)
    _check_middleware(config.domain, kind)
    from vlm_spec_decode.robot.go2.driver import Go2Driver

    if kind == "ros2":
        from vlm_spec_decode.ros.unitree_topics import REQUEST_TOPIC, RosConnector

        driver = Go2Driver(config, clock, connect=RosConnector(node))
        board: Board = TopicBoard(node, f"{node.resolve_topic_name(REQUEST_TOPIC)}/executor")
    else:
        from vlm_spec_decode.robot.go2.sdk import DdsBoard

        driver = Go2Driver(config, clock)
        board = DdsBoard(config)
    return LocomotionNode(node, driver, clock, stop, boards=(board,), spec=robot_kind("go2").spec)


def _monitor(node: Node, _stop: StopRequest) -> NodePart:
    from vlm_spec_decode.ros.nodes.monitor import MonitorNode

    return MonitorNode(node, WallClock())


def _vlm(node: Node, stop: StopRequest) -> NodePart:
    from vlm_spec_decode.mission.engine_source import EdgeEngineSource
    from vlm_spec_decode.ros.engine_source import read_settings
    from vlm_spec_decode.ros.nodes.vlm import VlmNode

    return VlmNode(node, EdgeEngineSource(read_settings(node)), WallClock(), stop)


def _check_middleware(domain: int, driver: str) -> None:
    """Raise DomainBusy if ROS and the SDK would both open the robot's domain with Cyclone DDS."""
    check_middleware(environment.rmw_in_use(), ros_domain(os.environ), domain, driver)


def _robot(node: Node) -> Go2Config:
    values = Parameters(node, ROBOT_PARAMETERS)
    interface, domain = values.text("interface") or None, values.integer("domain")
    return Go2Config(interface=interface, domain=domain, stop_s=STOP_S)
