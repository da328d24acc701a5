"""One environment for every test, set before any test module imports ROS or MuJoCo."""

import atexit
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from test.skips import SkipReport

WORKER = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "0")) or 0)

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
# Ray reads when it is imported whether its clusters are on loopback alone; whichever test imports it first.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# What one run keeps must decide nothing in the next one, nor fill the cache of who runs the tests.
os.environ["VSD_CACHE"] = tempfile.mkdtemp(prefix="vsd-test-cache-")
atexit.register(shutil.rmtree, os.environ["VSD_CACHE"], ignore_errors=True)
os.environ["ROS_DOMAIN_ID"] = str(60 + WORKER)

# How long one example takes says more about the machine than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

ALONE = {
    *("ros", "robot", "demo", "mission", "test_docs.py"),
    *("test_executor_threads.py", "test_executor_robots.py", "test_replicas.py"),
    *("test_sockets.py", "test_service.py", "test_operations.py", "test_links.py"),
    *("test_public_names.py", "test_wheel.py", "test_vllm.py"),
}
"""Folders and files whose tests live in wall-clock time, most of them with processes of their own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--skips", metavar="FILE", help="write as JSON what was skipped, and why")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipReport(config), "skip report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must not run beside another test: a machine that starves it would fail it."""
    here = Path(__file__).parent
    for item in items:
        parts = item.path.relative_to(here).parts
        if ALONE & set(parts) or any(item.get_closest_marker(name) for name in ("dds", "ros")):
            item.add_marker(pytest.mark.alone)


@pytest.fixture
def free_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
