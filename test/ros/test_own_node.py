import os
import subprocess
import sys

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
