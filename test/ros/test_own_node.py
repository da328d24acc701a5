import pytest
from std_msgs.msg import String

from test.ros import NAMESPACE, ROS_DOMAIN
from vlm_spec_decode.bridge.own_node import OwnNode
from vlm_spec_decode.core.errors import ConfigError

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
