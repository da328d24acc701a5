"""ROS contexts of their own, spun on a thread, and taken down whatever happens."""

import io
import threading
import time

import pytest
import rclpy
from PIL import Image as PilImage
from rclpy.action import ActionServer
from rclpy.qos import qos_profile_sensor_data

from test.mission.scripted import plain_jpeg
from test.ros import NAMESPACE, ROS_DOMAIN
from test.ros.processes import Processes
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.ros.callback_executor import CallbackExecutor
from vlm_spec_decode.ros.lifecycle import ManagedNode


class Graph:
    """Nodes of one test, spun on a thread of their own."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=ROS_DOMAIN)
        self.executor = CallbackExecutor(4, context=self.context)
        self.nodes = []
        self.parts = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def node(self, name, below="", **parameters):
        """Create a node in this process's namespace, or in one below it."""
        if name == "locomotion_node":
            parameters = {"lease_wait_s": 0.1} | parameters
        overrides = [rclpy.Parameter(key, value=value) for key, value in parameters.items()]
        options = {"context": self.context, "namespace": NAMESPACE + below, "parameter_overrides": overrides}
        node = rclpy.create_node(name, **options)
        self.nodes.append(node)
        return node

    def start(self, node, part=None):
        if part is not None:
            self.parts.append(part)
            part.begin()
        self.executor.add_node(node)
        self.executor.wake()
        return part

    def listen(self, node, kind, topic, qos=10):
        heard = []
        node.create_subscription(kind, topic, heard.append, qos)
        return heard

    def _spin(self):
        while not self.ended.is_set():
            self.executor.spin_once(timeout_sec=0.2)
            for node in self.nodes:
                if isinstance(node, ManagedNode):
                    node.destroy_marked()

    def close(self):
        for part in self.parts:
            part.close()
        self.ended.set()
        self.executor.wake()
        self.thread.join(5)
        self.executor.release()
        for node in self.nodes:
            # rclpy frees an action server with the last reference to it, and until then it goes on latching
            # its last status on this domain, for the tests that follow.
            for server in [each for each in node.waitables if isinstance(each, ActionServer)]:
                server.destroy()
            node.destroy_node()
        rclpy.shutdown(context=self.context)


def wait_for(condition, timeout_s=20.0):
    """Return the first true value of `condition`, or its last value when the time is up.

    The time is generous, because it is only spent by a test that fails, or on a machine that is busy.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    return condition()


@pytest.fixture
def graph():
    made = Graph()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def eventually():
    return wait_for


@pytest.fixture
def sensor_qos():
    return qos_profile_sensor_data


@pytest.fixture(scope="session")
def image() -> Image:
    buffer = io.BytesIO()
    PilImage.new("RGB", (64, 48), (20, 160, 40)).save(buffer, "JPEG")
    return Image(buffer.getvalue(), 64, 48)


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return plain_jpeg()


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path)
    yield started
    started.close()
