"""`vsd record`: byte for byte what travelled, whatever its quality of service; Ctrl-C completes the bag."""

import time

import pytest
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from test.ros import NAMESPACE, ROS_DOMAIN
from vlm_spec_decode.bags.settings import DEFAULT_TOPICS, RecordConfig
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.mission.messages import mission_status_from_message
from vlm_spec_decode.mission.queue import Ack, MissionRequest
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import to_compressed
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED, REQUEST
from vlm_spec_decode.ros.recorder import Arrivals, Recorder, message_type, modes_for
from vlm_spec_decode_msgs import msg

pytestmark = pytest.mark.ros


def bag_of(path):
    with AnyReader([path]) as reader:
        kinds = {c.topic: c.msgtype for c in reader.connections}
        return kinds, [(c.topic, bytes(data)) for c, _, data in reader.messages()]


def offered(path, ending):
    with Reader(path) as reader:
        (found,) = [c.ext.offered_qos_profiles for c in reader.connections if c.topic.endswith(ending)]
    return {(qos.reliability.name.lower(), qos.durability.name.lower()) for qos in found}


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_travelled_is_in_the_bag_byte_for_byte(graph, image, tmp_path, storage):
    node = graph.node("robot")
    voice = node.create_publisher(String, "vlm/instruction", COMMAND)
    state = node.create_publisher(msg.MissionStatus, "vlm/status", LATCHED)
    camera = node.create_publisher(CompressedImage, "camera/image_raw/compressed", qos_profile_sensor_data)
    other = node.create_publisher(String, "chatter", 10)
    heard = []
    ear = graph.node("ear")
    for kind, topic in ((String, "vlm/instruction"), (CompressedImage, "camera/image_raw/compressed")):
        ear.create_subscription(kind, topic, heard.append, qos_profile_sensor_data, raw=True)
    graph.start(node)
    graph.start(ear)
    early = typed.mission_status_to_message(
        MissionStatus(state="ready", detail="before anybody listened"), 12.5
    )
    state.publish(early)
    recorder = Recorder(RecordConfig(tmp_path / "bag", ROS_DOMAIN, DEFAULT_TOPICS, storage), print)
    frame = to_compressed(image, 12.5, "front_camera_optical")
    deadline = time.monotonic() + 30
    while len(recorder.counts) < 3 and time.monotonic() < deadline:
        recorder.subscribe_new()
        voice.publish(String(data="go"))
        camera.publish(frame)
        other.publish(String(data="not asked for"))
        recorder.spin(0.2)
    recorder.close()
    recorder.close()
    kinds, messages = bag_of(tmp_path / "bag")
    assert {topic.split("/", 2)[2]: kind for topic, kind in kinds.items()} == {
        "vlm/instruction": "std_msgs/msg/String",
        "vlm/status": "vlm_spec_decode_msgs/msg/MissionStatus",
        "camera/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
    }
    said = {topic.split("/", 2)[2]: data for topic, data in messages}
    assert deserialize_message(said["vlm/status"], msg.MissionStatus) == early
    with AnyReader([tmp_path / "bag"]) as reader:
        (link,) = [c for c in reader.connections if c.topic.endswith("vlm/status")]
        ((_, _, data),) = reader.messages([link])
        assert mission_status_from_message(reader.deserialize(data, link.msgtype)).state == "ready"
    # Padding between fields is whatever it was on the wire, so the ear's bytes are what counts.
    assert said["vlm/instruction"] in heard
    assert said["camera/image_raw/compressed"] in heard
    assert sum(recorder.counts.values()) == len(messages)
    # As `ros2 bag play` offers them again: latched and reliable as they were.
    assert offered(tmp_path / "bag", "vlm/status") == {("reliable", "transient_local")}
    assert offered(tmp_path / "bag", "camera/image_raw/compressed") == {("best_effort", "volatile")}
    with pytest.raises(ConfigError, match="holds a walk"):
        Recorder(RecordConfig(tmp_path / "bag", ROS_DOMAIN), print)
    assert bag_of(tmp_path / "bag")[1] == messages


def test_a_recorder_that_is_there_before_the_camera_hears_it(graph, image, tmp_path, eventually):
    topic, node = "camera/image_raw/compressed", graph.node("robot")
    node.create_subscription(CompressedImage, topic, print, qos_profile_sensor_data)
    graph.start(node)
    recorder = Recorder(RecordConfig(tmp_path / "bag", ROS_DOMAIN), print)

    def is_there():
        recorder.subscribe_new()
        recorder.spin(0.1)
        return len(node.get_subscriptions_info_by_topic(topic)) == 2

    assert eventually(is_there, 30.0)
    camera = node.create_publisher(CompressedImage, topic, qos_profile_sensor_data)

    def is_heard():
        camera.publish(to_compressed(image, 12.5, "front_camera_optical"))
        recorder.spin(0.1)
        return recorder.counts

    assert eventually(is_heard, 30.0)
    recorder.close()


def test_ctrl_c_completes_the_bag(graph, processes, tmp_path, eventually):
    node = graph.node("robot")
    voice = node.create_publisher(String, "vlm/instruction", COMMAND)
    sent = []

    def go():
        voice.publish(String(data="go"))
        sent.append(voice.get_subscription_count())

    node.create_timer(0.05, go)
    graph.start(node)
    processes.vsd("record", "record", tmp_path / "walk", "--domain", ROS_DOMAIN, "--json")
    assert eventually(lambda: sum(sent) >= 30, 60.0), processes.output("record")
    assert processes.interrupt("record") == 0, processes.output("record")
    kinds, messages = bag_of(tmp_path / "walk")
    assert len(kinds) == 1
    assert len(messages) > 3


def test_a_folder_that_is_no_bag_is_left_alone_and_unknown_types_are_named(tmp_path):
    (tmp_path / "letters").mkdir()
    with pytest.raises(ConfigError, match="left as it is"):
        Recorder(RecordConfig(tmp_path / "letters", ROS_DOMAIN), print)
    with pytest.raises(ConfigError, match="no_such_msgs/msg/Thing"):
        message_type("no_such_msgs/msg/Thing")


BEST_EFFORT, RELIABLE, KEPT = (False, False), (True, False), (True, True)


@pytest.mark.parametrize(
    ("publishers", "subscribers", "wanted"),
    [
        ([], [], {RELIABLE}),
        ([], [BEST_EFFORT], {BEST_EFFORT}),
        ([], [RELIABLE, BEST_EFFORT], {RELIABLE, BEST_EFFORT}),
        ([KEPT], [RELIABLE], {KEPT}),
        ([KEPT, RELIABLE, BEST_EFFORT], [], {KEPT, RELIABLE, BEST_EFFORT}),
    ],
)
def test_every_kind_of_publisher_has_a_subscription_that_loses_nothing(publishers, subscribers, wanted):
    assert modes_for(publishers, subscribers) == wanted


def arrive(arrivals, number, publisher=b"a", data=b"x"):
    info = {"publisher_gid": {"data": publisher}, "publication_sequence_number": number}
    return arrivals.is_new(info | {"source_timestamp": 1000 + number}, data)


def test_what_comes_twice_is_new_once_and_gaps_are_counted():
    arrivals = Arrivals(from_one=True)
    assert [arrive(arrivals, n) for n in (1, 1, 2, 2, 5)] == [True, False, True, False, True]
    assert arrivals.gaps == 2
    assert arrive(arrivals, 3)
    assert not arrive(arrivals, 3)
    assert arrivals.gaps == 1, "what comes late was not missed"
    assert arrive(arrivals, 3, b"b")
    assert arrivals.gaps == 3, "of another publisher the first two"


def test_of_a_stream_and_of_a_publisher_that_was_there_before_the_beginning_is_nobodys():
    stream = Arrivals(from_one=False)
    assert arrive(stream, 40)
    assert arrive(stream, 42)
    assert stream.gaps == 1
    old = Arrivals(from_one=True, known={b"a"})
    assert arrive(old, 40)
    assert old.gaps == 0


def test_a_middleware_that_does_not_number_still_brings_no_repeats():
    arrivals = Arrivals(from_one=True)
    info = {"publisher_gid": None, "publication_sequence_number": None, "source_timestamp": 7}
    assert arrivals.is_new(info, b"x")
    assert not arrivals.is_new(info, b"x")
    assert arrivals.is_new(info, b"y")
    assert arrivals.is_new(info | {"source_timestamp": 8}, b"x")
    assert arrivals.gaps == 0


def texts(path, ending, field="data"):
    with AnyReader([path]) as reader:
        found = [c for c in reader.connections if c.topic.endswith(ending)]
        return [getattr(reader.deserialize(data, c.msgtype), field) for c, _, data in reader.messages(found)]


def test_late_latched_publishers_beside_others_are_heard_whole_and_once(graph, tmp_path, eventually):
    node, late = graph.node("robot"), graph.node("late")
    plain = node.create_publisher(String, "vlm/status", COMMAND)
    graph.start(node)
    graph.start(late)
    recorder = Recorder(RecordConfig(tmp_path / "bag", ROS_DOMAIN), print)

    def heard(topic, count):
        def is_heard():
            recorder.subscribe_new()
            recorder.spin(0.1)
            return sum(n for name, n in recorder.counts.items() if name.endswith(topic)) >= count

        return eventually(is_heard, 30.0)

    def there():
        recorder.subscribe_new()
        recorder.spin(0.1)
        return plain.get_subscription_count()

    assert eventually(there, 30.0)
    plain.publish(String(data="plain"))
    assert heard("vlm/status", 1)
    latched = late.create_publisher(String, "vlm/status", LATCHED)
    latched.publish(String(data="latched, before anybody was matched"))
    assert heard("vlm/status", 2)
    plain.publish(String(data="both go on"))
    latched.publish(String(data="latched again"))
    assert heard("vlm/status", 4)
    recorder.spin(0.5)
    recorder.close()
    expected = ["both go on", "latched again", "latched, before anybody was matched", "plain"]
    assert sorted(texts(tmp_path / "bag", "vlm/status")) == expected
    assert recorder.missed() == {}


def test_a_request_of_a_process_that_lives_for_a_moment_is_recorded(graph, tmp_path, eventually):
    ear = graph.node("vlm_node")
    ear.create_subscription(msg.Mission, "vlm/request", print, COMMAND)
    acks = ear.create_publisher(msg.MissionAck, "vlm/ack", COMMAND)
    graph.start(ear)
    recorder = Recorder(RecordConfig(tmp_path / "bag", ROS_DOMAIN), print)

    def spin(until):
        def look():
            recorder.subscribe_new()
            recorder.spin(0.1)
            return until()

        return eventually(look, 30.0)

    assert spin(acks.get_subscription_count)
    asker = graph.node("asker")
    request = asker.create_publisher(msg.Mission, "vlm/request", REQUEST)
    request.publish(typed.request_to_message(MissionRequest(instruction="go", mission="one")))
    graph.start(asker)
    assert spin(lambda: any(name.endswith("request") for name in recorder.counts))
    for name, topic in (("one", "vlm/request"), ("two", "vlm/request"), ("spoken-1", "vlm/instruction")):
        acks.publish(typed.ack_to_message(Ack(state="taken", mission=name, topic=topic)))
    assert spin(lambda: recorder.counts[f"{NAMESPACE}/vlm/ack"] >= 3)
    recorder.close()
    assert texts(tmp_path / "bag", "vlm/request", "mission") == ["one"]
    missed = {topic.removeprefix(NAMESPACE): count for topic, count in recorder.missed().items()}
    assert missed == {"/vlm/request": 1, "/vlm/instruction": 1}
