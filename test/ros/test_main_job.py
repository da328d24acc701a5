"""The main job on real parts: node processes, ZeroMQ with CURVE, the models that ship, the robot's DDS."""

import json
import socket

import pytest
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from test.ros.reports import as_json, kind_of
from test.simulator import dds_domain

pytestmark = [pytest.mark.ros, pytest.mark.dds, pytest.mark.sim, pytest.mark.net, pytest.mark.slow]

ENDED = {"done", "step_limit", "refused", "cancelled", "failed"}
SCENE = """
name: a ball ahead
length_m: 6.0
width_m: 6.0
start: {x_m: -2.2, y_m: 0.0}
objects:
  - {kind: ball, colour: red, x_m: 0.0, y_m: 0.2}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class User:
    """Gives instructions and keeps all that the nodes say."""

    def __init__(self, graph, sensor_qos):
        self.node = graph.node("user")
        self.voice = self.node.create_publisher(String, "vlm/instruction", 10)
        topics = {"status": "vlm/status", "answer": "vlm/answer", "trace": "vlm/trace", "plan": "vlm/plan"}
        self.heard = {
            name: graph.listen(self.node, kind_of(topic), topic, 100) for name, topic in topics.items()
        }
        self.partials = graph.listen(self.node, String, "vlm/answer/partial", 100)
        self.executor = graph.listen(self.node, kind_of("vlm/plan/status"), "vlm/plan/status", 100)
        self.odometry = graph.listen(self.node, Odometry, "odom", 100)
        self.images = graph.listen(self.node, CompressedImage, "camera/image_raw/compressed", sensor_qos)
        graph.start(self.node)

    def say(self, text):
        self.voice.publish(String(data=text))

    def json(self, topic):
        return [as_json(message) for message in self.heard[topic]]

    def ended(self, count=1):
        """Return the status that ended the `count`-th mission, once it is there."""
        ends = [status for status in self.json("status") if status["state"] in ENDED]
        return ends[count - 1] if len(ends) >= count else None

    def counts(self):
        heard = {name: len(messages) for name, messages in self.heard.items()}
        rest = {"executor": self.executor, "images": self.images, "odometry": self.odometry}
        return heard | {name: len(messages) for name, messages in rest.items()}

    def place(self):
        position = self.odometry[-1].pose.pose.position
        return position.x, position.y


@pytest.fixture
def user(graph, sensor_qos):
    return User(graph, sensor_qos)


@pytest.mark.timeout(320)
def test_a_sentence_walks_the_robot_and_a_lost_cloud_leaves_it_at_rest(user, processes, eventually, tmp_path):
    address, keys = start_all(processes, tmp_path)
    wait_until_up(user, processes, eventually)

    user.say("walk to the red ball")
    end = eventually(user.ended, 120.0)
    assert end, f"{user.counts()}\n{processes.story()}"
    assert end["state"] == "done", f"{json.dumps(end)}\n{processes.story()}"
    answers, traces = user.json("answer"), user.json("trace")
    assert len(answers) == len(traces) >= 1
    assert answers[0]["text"] in [message.data for message in user.partials]
    assert any(plan["actions"] for plan in user.json("plan"))
    done = [action for answer in answers for action in answer["actions"]]
    assert done[-1] == "done()"
    assert user.place()[0] > 0.5, "the robot has not walked"
    assert all(trace["image_bytes"] > 0 for trace in traces)
    assert traces[0]["strategy"] == "hybrid"
    assert traces[0]["target_passes"] < traces[0]["tokens"]
    assert traces[0]["time_to_first_action_s"] <= traces[0]["total_s"]

    processes.interrupt("cloud", 9)
    user.say("walk to the red ball")
    end = eventually(lambda: user.ended(2), 60.0)
    assert end["state"] == "failed", json.dumps(end)
    assert end["reason"].startswith("Cloud")
    assert told(user)[-1] != "moving"

    processes.vsd("cloud again", "cloud", "--bind", address, "--keys", keys)
    assert eventually(lambda: states(user)[-1] == "ready", 90.0), processes.story()


def states(user):
    return [status["state"] for status in user.json("status")]


def told(user):
    return [as_json(message)["state"] for message in user.executor]


def wait_until_up(user, processes, eventually):
    up = eventually(lambda: user.executor and user.images and "ready" in states(user), 120.0)
    assert up, f"{user.counts()}\n{processes.story()}"


PATIENT = {"answer_timeout_s": 20.0, "link_silence_s": 4.0, "hold_timeout_s": 8.0, "status_timeout_s": 8.0}
"""A busy machine starves each of these processes for a second now and then; none of them has gone, then."""


def start_all(processes, folder):
    """Start simulator, cloud and nodes with keys made for them; return the cloud's address and the keys."""
    keys, scene = folder / "keys", folder / "scene.yaml"
    scene.write_text(SCENE)
    processes.vsd("keys", "keys", keys)
    assert processes.running["keys"].wait(90) == 0
    address, domain = f"tcp://127.0.0.1:{free_port()}", dds_domain()
    processes.vsd("sim", "sim", "--scene", scene, "--interface", "lo", "--domain", domain)
    processes.vsd("cloud", "cloud", "--bind", address, "--keys", keys)
    for name in ("camera_node", "locomotion_node"):
        processes.node(name, interface="lo", domain=domain)
    processes.node("vlm_node", cloud=address, keys=keys, **PATIENT)
    return address, keys


@pytest.mark.timeout(320)
def test_a_robot_that_is_not_heard_for_a_moment_ends_no_mission(user, processes, eventually, tmp_path):
    start_all(processes, tmp_path)
    wait_until_up(user, processes, eventually)
    user.say("walk to the red ball")
    assert eventually(lambda: "moving" in told(user), 60.0), processes.story()
    processes.pause("sim", 1.0)
    end = eventually(user.ended, 120.0)
    assert end, f"{user.counts()}\n{processes.story()}"
    assert end["state"] == "done", f"{json.dumps(end)}\n{processes.story()}"
    assert "fault" in told(user), "the robot was heard all the time"


@pytest.mark.timeout(300)
def test_a_cloud_that_is_not_there_or_knows_other_keys_is_named(user, processes, eventually, tmp_path):
    for name in ("mine", "theirs"):
        processes.vsd(name, "keys", tmp_path / name)
        assert processes.running[name].wait(90) == 0
    address = f"tcp://127.0.0.1:{free_port()}"
    processes.node("vlm_node", cloud=address, keys=tmp_path / "mine")
    assert eventually(lambda: "unavailable" in states(user), 90.0), processes.output("vlm_node")
    assert user.json("status")[-1]["reason"] == "CloudUnreachable"
    processes.vsd("cloud", "cloud", "--bind", address, "--keys", tmp_path / "theirs")
    refused = eventually(lambda: any("key" in status["detail"] for status in user.json("status")), 90.0)
    assert refused, user.json("status")
    assert processes.interrupt("vlm_node") == 0
    assert "Traceback" not in processes.output("vlm_node")


def test_settings_that_do_not_hold_end_the_vlm_node_with_a_code(processes):
    process = processes.node("vlm_node", cloud="tcp://127.0.0.1:9", strategy="fastest")
    assert process.wait(100) == 2
    assert "fastest" in processes.output("vlm_node")
