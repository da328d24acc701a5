import os
import signal
import subprocess
import sys
import time

import pytest
from std_msgs.msg import String

from test.ros import NAMESPACE, ROS_DOMAIN
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros.middleware import OwnNode

pytestmark = pytest.mark.ros


def test_two_in_one_process_hear_each_other_and_leave_alone(eventually):
    ear, mouth = (OwnNode(name, ROS_DOMAIN, NAMESPACE) for name in ("ear", "mouth"))
    heard = []
    ear.node.create_subscription(String, "word", heard.append, 10)
    words = mouth.node.create_publisher(String, "word", 10)

    def arrives():
        words.publish(String(data="hello"))
        ear.spin(0.05)
        return heard

    try:
        assert eventually(arrives)
        mouth.close()
        mouth.close()
        ear.spin_once(0.01)
    finally:
        ear.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_raised_after_a_callback_and_never_within_one(number, eventually):
    """Within one, rclpy's C++ may be on the stack, which makes TypeError of KeyboardInterrupt."""
    ear, mouth = (OwnNode(name, ROS_DOMAIN, NAMESPACE) for name in ("ear", "mouth"))
    begun, finished = [], []

    def take(message):
        begun.append(message.data)
        os.kill(os.getpid(), number)
        finished.append(message.data)

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    ear.node.create_subscription(String, "word", take, 10)
    words = mouth.node.create_publisher(String, "word", 10)
    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            for _ in range(200):
                words.publish(String(data="hello"))
                ear.spin(0.05)
        assert begun == finished == ["hello"]
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
        mouth.close()
        ear.close()


def test_an_interrupt_ends_a_long_spin_early():
    ear = OwnNode("ear", ROS_DOMAIN, NAMESPACE)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    began_s = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            ear.spin(20)
    finally:
        signal.signal(signal.SIGALRM, before)
        ear.close()
    assert time.monotonic() - began_s < 5


def test_what_is_no_namespace_is_named():
    with pytest.raises(ConfigError, match="'no name' is no ROS namespace"):
        OwnNode("ear", ROS_DOMAIN, "no name")


@pytest.mark.parametrize(
    ("wanted", "shares"), [({}, False), ({"FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT"}, True)]
)
def test_a_process_that_may_be_killed_shares_no_memory_unless_asked_to(wanted, shares):
    code = (
        "from pathlib import Path\n"
        "from vlm_spec_decode.ros.middleware import OwnNode\n"
        f"node = OwnNode('alone', {ROS_DOMAIN})\n"
        "print('/dev/shm/fastdds' in Path('/proc/self/maps').read_text())\n"
        "node.close()\n"
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith("FASTDDS")}
    # With LOCALHOST, which the tests have, rmw_fastrtps brings shared memory whatever it is told.
    others["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SUBNET"
    done = subprocess.run([sys.executable, "-c", code], env=others | wanted, capture_output=True, text=True)
    assert done.stdout.strip() == str(shares), done.stderr
