"""The life of a node process: build, spin, and end quietly on the first signal, whatever the state.

Signal handlers run on the main thread only, and only between bytecodes. So the main thread does nothing
but wait, and the executor spins on another: a signal is seen at once even while a callback computes.
While the parts are still being put together (importing a model's libraries takes seconds) nothing runs
yet that would have to be stopped, so a signal simply ends that.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Protocol

import rclpy
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vlm_spec_decode.core.errors import VsdError


class NodePart(Protocol):
    """What a node class offers to the process that runs it."""

    def close(self) -> None:
        """Bring everything to rest (the robot first) and free it. Idempotent, bounded in time."""
        ...


class Stop(Protocol):
    """Ends the process from inside; `error` becomes its exit code."""

    def __call__(self, error: VsdError | None = None) -> None:
        """Ask for the end; the first call decides the exit code."""
        ...


Build = Callable[[Node, Stop], NodePart]


class _EndedEarly(BaseException):
    """A signal while the parts were being put together; no Exception, so that nobody else takes it."""


class _Ending:
    """Remembers that, and why, the process ends."""

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
    a bug and keeps its traceback, after the node has been closed.
    """
    ending = _Ending()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ending.on_signal)
    rclpy.init(args=list(args) if args is not None else None, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name)
    try:
        _serve(node, _built(node, build, ending), ending, threads)
    except VsdError as error:
        ending(error)
    except _EndedEarly:
        node.get_logger().info("ended before it had begun")
    finally:
        code = _report(node, ending.error)
        node.destroy_node()
        rclpy.try_shutdown()
        # The interpreter gives handlers back while it ends; one more Ctrl-C would then kill it with a code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return code


def _built(node: Node, build: Build, ending: _Ending) -> NodePart:
    ending.is_building = True
    part = build(node, ending)
    ending.is_building = False
    return part


def _serve(node: Node, part: NodePart, ending: _Ending, threads: int) -> None:
    executor = MultiThreadedExecutor(threads)
    executor.add_node(node)
    pool = ThreadPoolExecutor(1, thread_name_prefix="spin")
    spinning = pool.submit(_spin, executor, ending.event)
    spinning.add_done_callback(lambda _: ending())
    try:
        ending.event.wait()
    finally:
        part.close()
        executor.wake()
        pool.shutdown()
        # No executor.shutdown(): it frees what a callback that is still running uses at its end.
    _raise_bug(spinning)


def _spin(executor: MultiThreadedExecutor, ended: threading.Event) -> None:
    while not ended.is_set():
        executor.spin_once(timeout_sec=1.0)


def _raise_bug(spinning: Future[None]) -> None:
    try:
        spinning.result()
    except (KeyboardInterrupt, ExternalShutdownException):
        return


def _report(node: Node, error: VsdError | None) -> int:
    if error is None:
        return 0
    node.get_logger().fatal(f"{type(error).__name__}: {error}")
    return error.exit_code
