"""The five node processes: command line, construction of the parts, running, and shutdown.

`nodes/` only calls these. Each imports its own parts only when it runs: a camera node does not need a model's
libraries.

A process builds, spins, and ends on the first signal, whatever its state. Signal handlers run on the main
thread only, and only between bytecodes. So the main thread only waits, and the executor spins on another: a
signal is handled at once even while a callback computes. During construction (importing a model's libraries
takes seconds) nothing runs yet that must be stopped, so a signal ends it directly.

Command line: `--help`, and an error for words that are no ROS arguments.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import NoReturn

import rclpy
from rclpy.action import ActionServer
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vlm_spec_decode.core import environment, extras, internal_error
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.environment_checks import can_write, log_folder, ros_domain
from vlm_spec_decode.core.errors import InternalError, VsdError
from vlm_spec_decode.core.load_progress import LoadLog, shown_by
from vlm_spec_decode.robot.go2.codes import StateTable
from vlm_spec_decode.robot.go2.config import Go2Config, check_middleware, check_network
from vlm_spec_decode.robot.lease import Board
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.ros.callback_executor import CallbackExecutor, make_executor
from vlm_spec_decode.ros.lifecycle import Build, ManagedNode, NodePart, StopRequest
from vlm_spec_decode.ros.middleware import NO_LOG_FILE, named_errors, prefer_sockets
from vlm_spec_decode.ros.node_parameters import settings
from vlm_spec_decode.ros.params import (
    DRIVER_PARAMETERS,
    ROBOT_PARAMETERS,
    SOURCE_PARAMETERS,
    Parameters,
    asks_for_help,
    check_arguments,
    help_text,
)
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S

STOP_S = 1.2
"""How long one stop may wait for the state to confirm it. The end of a node makes up to three stops, and a
launcher kills it after some 5 s."""


def camera_main() -> int:
    """Run the camera node; return its exit code."""
    return run_node("camera_node", _camera)


def console_main() -> int:
    """Run the console node; return its exit code."""
    return run_node("console_node", _console, threads=4)


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
    from vlm_spec_decode.ros.nodes.locomotion import PRIORITY, LocomotionNode, TopicBoard, raise_priority
    from vlm_spec_decode.ros.velocity_robot import VelocityTopics

    settings = Parameters(node, DRIVER_PARAMETERS)
    config, clock = replace(_robot(node), states=StateTable.parse(settings.text("state_codes"))), WallClock()
    refused = raise_priority(Parameters(node, (PRIORITY,)).integer(PRIORITY.name))
    if refused:
        node.get_logger().info(refused)
    kind = settings.text("driver")
    if kind == "cmd_vel":
        topics = VelocityTopics(node, clock)
        boards, spec = (topics.board,), robot_kind("cmd_vel").spec
        return LocomotionNode(
            node, topics.robot, clock, stop, publishes_odometry=False, boards=boards, spec=spec
        )
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


def _console(node: Node, _stop: StopRequest) -> NodePart:
    from vlm_spec_decode.ros.nodes.console import ConsoleNode

    return ConsoleNode(node, WallClock())


def _monitor(node: Node, _stop: StopRequest) -> NodePart:
    from vlm_spec_decode.ros.nodes.monitor import MonitorNode

    return MonitorNode(node, WallClock())


def _vlm(node: Node, stop: StopRequest) -> NodePart:
    from vlm_spec_decode.mission.connection import EdgeEngineSource
    from vlm_spec_decode.ros.nodes.vlm import VlmNode, read_settings

    return VlmNode(node, EdgeEngineSource(read_settings(node)), WallClock(), stop)


def _check_middleware(domain: int, driver: str) -> None:
    """Raise DomainBusy if ROS and the SDK would both open the robot's domain with Cyclone DDS."""
    check_middleware(environment.rmw_in_use(), ros_domain(os.environ), domain, driver)


def _robot(node: Node) -> Go2Config:
    values = Parameters(node, ROBOT_PARAMETERS)
    interface, domain = values.text("interface") or None, values.integer("domain")
    return Go2Config(interface=interface, domain=domain, stop_s=STOP_S)


RCLError = rclpy_implementation.RCLError
AGAIN_S = 0.05
LAST_S = 0.1
"""How long an ended node with an action server is spun, so that its goals get their results."""


class _EndedEarly(BaseException):
    """A signal while the parts were being created; no Exception, so that no handler of ours catches it."""


class _Ending:
    """Whether, and why, the process is to end."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.error: VsdError | None = None
        self.is_building = False

    def __call__(self, error: VsdError | None = None) -> None:
        if not self.event.is_set():
            self.error = error
        self.event.set()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.event.set()
        if self.is_building:
            self.is_building = False
            raise _EndedEarly


def run_node(name: str, build: Build, args: Sequence[str] | None = None, threads: int = 3) -> int:
    """Run one node until a signal or `Stop`; return the exit code.

    A fault named by the library is logged in one line and gives that error's exit code; anything else is
    a bug, named in one line with the way to its traceback after the node has been closed, and gives 1.
    """
    given = sys.argv if args is None else args
    if asks_for_help(given):
        return _help(name)
    ending = _Ending()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ending.on_signal)
    try:
        node = _join(name, build, ending, given)
    except VsdError as error:
        # Not through the logger: it may be the part that could not start.
        sys.stderr.write(f"[FATAL] [{name}]: {type(error).__name__}: {' '.join(str(error).split())}\n")
        rclpy.try_shutdown()
        return error.exit_code
    try:
        with shown_by(LoadLog(node.get_logger().info)), extras.translate_missing():
            _bring_up(node, ending)
            _serve(node, ending, threads)
    except VsdError as error:
        ending(error)
    except Exception as error:  # noqa: BLE001 - the net under a node: one line, never a traceback
        ending.error = InternalError(internal_error.describe_internal_error(error))
    except _EndedEarly:
        node.get_logger().info("ended before it had begun")
    finally:
        code = _report(node, ending.error)
        node.destroy_node()
        rclpy.try_shutdown()
        # The interpreter restores handlers while it ends; another Ctrl-C would then end it with an error
        # code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return code


def _help(name: str) -> int:
    sys.stdout.write(help_text(name, settings(name)))
    return 0


def _join(name: str, build: Build, ending: _Ending, args: Sequence[str]) -> ManagedNode:
    """Start ROS 2 in this process and make the node. Raises ConfigError or MiddlewareError."""
    environment.raise_for_refused(os.environ, environment.ROS)
    check_arguments(args)
    prefer_sockets()
    folder = log_folder(os.environ)
    if folder is None or not can_write(folder):
        args = [*args, *NO_LOG_FILE]
    with named_errors():
        rclpy.init(args=list(args), signal_handler_options=SignalHandlerOptions.NO)
        return ManagedNode(name, build, ending)


def leave(code: int) -> NoReturn:
    """End this process now. Everything must be closed before.

    Freeing a model's libraries costs the interpreter more than a second of a core, in which a launch that has
    been interrupted sees a node that does not end.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _bring_up(node: ManagedNode, ending: _Ending) -> None:
    if node.autostart:
        ending.is_building = True
        node.bring_up()
        ending.is_building = False


def _serve(node: ManagedNode, ending: _Ending, threads: int) -> None:
    executor = make_executor(threads)
    executor.add_node(node)
    pool = ThreadPoolExecutor(1, thread_name_prefix="spin")
    spinning = pool.submit(_spin, executor, node, ending.event)
    spinning.add_done_callback(lambda _: ending())
    try:
        ending.event.wait()
    finally:
        node.close()
        executor.wake()
        pool.shutdown()
        if not spinning.exception() and any(isinstance(each, ActionServer) for each in node.waitables):
            _send_last(executor)
        # No executor.shutdown(): it frees objects that a running callback uses at its end.
        if isinstance(executor, CallbackExecutor):
            executor.release()
    _raise_bug(spinning)


def _spin(executor: MultiThreadedExecutor, node: ManagedNode, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            executor.spin_once(timeout_sec=1.0)
        except RCLError as error:
            # A message whose bytes are not of its type: some middleware raises when it is received.
            problem = f"a message could not be taken: {error}"
            node.get_logger().error(problem, throttle_duration_sec=WARN_EVERY_S)
            ended.wait(AGAIN_S)
        node.destroy_marked()


def _send_last(executor: MultiThreadedExecutor) -> None:
    """Let the results of the goals that the end has ended be sent: a task of the executor does that."""
    until_s = time.monotonic() + LAST_S
    with suppress(RCLError):
        while (left_s := until_s - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=min(left_s, LAST_S / 4))


def _raise_bug(spinning: Future[None]) -> None:
    try:
        spinning.result()
    except (KeyboardInterrupt, ExternalShutdownException):
        return


def _report(node: ManagedNode, error: VsdError | None) -> int:
    if error is None:
        return 0
    node.get_logger().fatal(f"{type(error).__name__}: {error}")
    return error.exit_code
