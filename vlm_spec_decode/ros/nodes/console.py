"""Serves the console in a browser beside the other nodes: shows what they publish, and passes on commands."""

from __future__ import annotations

import math
from contextlib import ExitStack

from rclpy.node import Node

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.config import Setting, read_mapping
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.ros.console_robot import RosRobot
from vlm_spec_decode.ros.nodes.camera import PARAMETERS as CAMERA_PARAMETERS
from vlm_spec_decode.ros.nodes.locomotion import PARAMETERS as LOCOMOTION_PARAMETERS
from vlm_spec_decode.ros.params import Parameters, parameters
from vlm_spec_decode.serve.console.settings import ConsoleSettings, links_file, serving
from vlm_spec_decode.serve.console.state import CameraView, RobotFacts

SHARED = ("limits_file", "hfov_deg", "camera_pitch_rad")
"""Parameters that other nodes have, too, and that are to be the same here."""

PARAMETERS = (
    *parameters(ConsoleSettings, "bind", "tokens", "tls_certificate", "tls_key"),
    Setting("robots", "", "Namespaces of the robots to show, with commas between; empty: that of this node."),
    *(each for each in (*LOCOMOTION_PARAMETERS, *CAMERA_PARAMETERS) if each.name in SHARED),
)


class ConsoleNode:
    """The page's server, and a `RosRobot` for each namespace."""

    def __init__(self, node: Node, clock: Clock) -> None:
        self._node = node
        values = Parameters(node, PARAMETERS)
        self._settings = ConsoleSettings(
            bind=values.text("bind"),
            tokens=values.path("tokens"),
            tls_certificate=values.path("tls_certificate"),
            tls_key=values.path("tls_key"),
        )
        limits_path, spec = values.path("limits_file"), robot_kind("go2").spec
        limits = SafetyLimits.from_mapping(read_mapping(limits_path)) if limits_path else SafetyLimits()
        camera = CameraView(
            hfov_deg=values.real("hfov_deg"), pitch_deg=math.degrees(values.real("camera_pitch_rad"))
        )
        names = [name.strip() for name in values.text("robots").split(",") if name.strip()]
        self.robots = [
            RosRobot(
                node,
                RobotFacts(
                    name=name.strip("/").replace("/", ".") or "robot",
                    title=f"{spec.title}, {name}" if name else spec.title,
                    limits=spec.narrowed(limits),
                    hull_m=(spec.hull.length_m, spec.hull.width_m),
                    camera=camera,
                ),
                clock,
                name,
            )
            for name in names or [""]
        ]
        self._served = ExitStack()
        self.url = ""

    @property
    def is_settled(self) -> bool:
        """Always true: there is nothing to wait for."""
        return True

    def begin(self) -> None:
        """Subscribe, and serve the page. Raises ConfigError for an address that cannot be bound."""
        for robot in self.robots:
            robot.begin()
        links = self._served.enter_context(serving(self.robots, self._settings))
        self.url = links.url
        # Not the links: this goes to /rosout and into log files, and each link has a token.
        file = self._served.enter_context(links_file(links))
        where = f"its links are in {file}, which only you may read" if file else "its tokens are in your file"
        self._node.get_logger().info(f"the page: {links.url}/ ({where})")

    def close(self) -> None:
        """Stop what pages drive, and serve no more. Idempotent."""
        self._served.close()
        for robot in self.robots:
            robot.close()
