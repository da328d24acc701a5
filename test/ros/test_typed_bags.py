"""Recordings of the typed topics: written with their definitions, read without ROS, beside older ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rclpy.serialization import serialize_message
from rosbags.highlevel import AnyReader

from test.test_extras import without
from vlm_spec_decode.actions.types import Forward, Turn
from vlm_spec_decode.bags.events import ANSWER, Answered, Events, Topics
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.recording import STRING, Recording
from vlm_spec_decode.mission.messages import answer_from_message
from vlm_spec_decode.mission.reports import AnswerReport, StartReport
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import to_compressed
from vlm_spec_decode_msgs import msg

REPORT = AnswerReport(
    mission="m",
    number=1,
    instruction="go to the ball",
    history=("turn(20)",),
    stamp_s=12.5,
    frame_id="eye",
    image_width=320,
    image_digest=bytes(range(32)),
    text="ball left . turn ( 20 )",
    token_ids=(4, 5, 6),
    token_fates=("accepted", "accepted", "target"),
    actions=(Turn(20.0), Forward(1.25)),
    start=StartReport("turn(20)", "confirmed"),
)


def record(
    path: Path, image: Any, *, typed_ones: tuple[AnswerReport, ...], older: tuple[AnswerReport, ...]
) -> None:
    bag = Recording(path)
    frame = serialize_message(to_compressed(image, 12.5, "eye"))
    bag.write("/camera/image_raw/compressed", "sensor_msgs/msg/CompressedImage", frame, 1)
    for number, report in enumerate(typed_ones, 2):
        bag.write("/a/vlm/answer/typed", ANSWER, serialize_message(typed.answer_to_message(report)), number)
    for number, report in enumerate(older, 2):
        bag.write_text("/a/vlm/answer", report.to_json(), number)
    bag.close()


def answers(path: Path) -> list[Answered]:
    source = open_bag(path)
    events = Events(source, Topics().choose(source.topics))
    found = [event for event in events if isinstance(event, Answered)]
    assert not events.faults
    source.close()
    return found


def test_a_typed_answer_says_what_the_older_ones_say(image, tmp_path):
    partial = replace(REPORT, final=False, actions=())
    record(tmp_path / "new", image, typed_ones=(partial, REPORT), older=())
    record(tmp_path / "old", image, typed_ones=(), older=(REPORT,))
    record(tmp_path / "both", image, typed_ones=(REPORT,), older=(REPORT, REPORT))
    (new,), (old,), both = (answers(tmp_path / name) for name in ("new", "old", "both"))
    assert replace(new, at_ns=0) == replace(old, at_ns=0)
    assert new.actions == ("turn(20)", "forward(1.25)")
    assert new.start == "turn(20): confirmed"
    assert len(both) == 1, "the typed topic is chosen where there are two"


def test_a_bag_is_read_with_its_own_definitions_and_by_anybody(image, tmp_path):
    record(tmp_path / "bag", image, typed_ones=(REPORT,), older=())
    with AnyReader([tmp_path / "bag"]) as reader:
        (link,) = [c for c in reader.connections if c.msgtype == ANSWER]
        ((_, _, data),) = reader.messages([link])
        assert answer_from_message(reader.deserialize(data, ANSWER)) == REPORT


@pytest.mark.parametrize("kind", [ANSWER, STRING])
def test_an_answer_that_cannot_be_read_is_counted(image, tmp_path, kind):
    bad = msg.Answer(final=True, actions=[msg.RobotAction(kind=99)])
    bag = Recording(tmp_path / "bag")
    frame = serialize_message(to_compressed(image, 12.5, "eye"))
    bag.write("/camera/image_raw/compressed", "sensor_msgs/msg/CompressedImage", frame, 1)
    if kind == ANSWER:
        bag.write("/vlm/answer/typed", ANSWER, serialize_message(bad), 2)
    else:
        bag.write_text("/vlm/answer", json.dumps({"stamp_s": 1.0}), 2)
    bag.close()
    source = open_bag(tmp_path / "bag")
    events = Events(source, Topics().choose(source.topics))
    assert not [event for event in events if isinstance(event, Answered)]
    (fault,) = events.faults
    assert "not as expected" in fault


def test_bags_are_read_where_neither_ros_nor_the_built_messages_are(image, tmp_path):
    record(tmp_path / "bag", image, typed_ones=(REPORT,), older=())
    code = (
        "from vlm_spec_decode.bags.events import Answered, Events, Topics\n"
        "from vlm_spec_decode.bags.reader import open_bag\n"
        "from pathlib import Path\n"
        "source = open_bag(Path(sys.argv[1]))\n"
        "found = [e for e in Events(source, Topics().choose(source.topics)) if isinstance(e, Answered)]\n"
        "print(found[0].instruction)"
    )
    done = without({"rclpy", "vlm_spec_decode_msgs", "std_msgs"}, code, str(tmp_path / "bag"))
    assert done.stdout.strip() == REPORT.instruction, done.stderr[-1000:]
