"""A ROS 2 node of a benchmark, in a context of its own: two threads spin it and publish periodically."""

from __future__ import annotations

import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import MultiThreadedExecutor
from rclpy.signals import SignalHandlerOptions


class BenchmarkNode:
    """The node, from the constructor to `close`. A subclass makes its topics, then calls `start`."""

    def __init__(self, name: str, threads: int) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = MultiThreadedExecutor(threads, context=self._context)
        self._executor.add_node(self.node)
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, publish: Callable[[], None]) -> None:
        """Spin on one thread and run `publish` on another; it returns once `_ended` is set."""
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._spin, publish)]
        for thread in self._threads:
            thread.start()

    def now_s(self) -> float:
        """Return ROS time."""
        return float(self.node.get_clock().now().nanoseconds / 1e9)

    def close(self) -> None:
        """Stop the threads and destroy the node."""
        self._ended.set()
        self._executor.wake()
        for thread in self._threads:
            thread.join(3)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _spin(self) -> None:
        while not self._ended.is_set():
            self._executor.spin_once(timeout_sec=0.2)
