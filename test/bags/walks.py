"""Bags as other robots' recorders write them, made on the spot."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image as PilImage
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND
ROS2, ROS1 = get_typestore(Stores.ROS2_HUMBLE), get_typestore(Stores.ROS1_NOETIC)


def picture(width=64, height=48, colour=(200, 30, 30)):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = colour
    pixels[:, width // 2 :] = (30, 60, 220)
    return pixels


def jpeg(pixels, kind="JPEG"):
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class Walk:
    """Writes messages; `at_s` counts from the bag's start."""

    def __init__(self, path: Path, storage="mcap", compression=None):
        self.is_ros1 = storage == "ros1"
        self.types = ROS1 if self.is_ros1 else ROS2
        if self.is_ros1:
            self.writer = Writer1(path)
            if compression:
                self.writer.set_compression(compression)
        else:
            self.writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
        self.writer.open()
        self.connections = {}

    def write(self, topic, message, at_s):
        kind = message.__msgtype__
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.types)
        serialize = self.types.serialize_ros1 if self.is_ros1 else self.types.serialize_cdr
        self.writer.write(
            self.connections[topic], START_NS + round(at_s * SECOND), bytes(serialize(message, kind))
        )

    def close(self):
        self.writer.close()

    def header(self, at_s, frame_id="camera"):
        ns = START_NS + round(at_s * SECOND)
        stamp = self.types.types["builtin_interfaces/msg/Time"](ns // SECOND, ns % SECOND)
        kind = self.types.types["std_msgs/msg/Header"]
        return kind(0, stamp, frame_id) if self.is_ros1 else kind(stamp, frame_id)

    def compressed(self, at_s, data=None, kind="jpeg", topic="/front/image/compressed"):
        message = self.types.types["sensor_msgs/msg/CompressedImage"]
        data = jpeg(picture()) if data is None else data
        self.write(topic, message(self.header(at_s), kind, np.frombuffer(data, np.uint8)), at_s)

    def raw(self, at_s, encoding, rows, width, topic="/front/image", big=0):
        message = self.types.types["sensor_msgs/msg/Image"]
        rows = np.ascontiguousarray(rows)
        data = np.frombuffer(rows.tobytes(), np.uint8)
        step = data.size // len(rows)
        self.write(topic, message(self.header(at_s), len(rows), width, encoding, big, step, data), at_s)

    def text(self, at_s, text, topic="/vlm/instruction"):
        self.write(topic, self.types.types["std_msgs/msg/String"](text), at_s)

    def twist(self, at_s, vx=0.0, vyaw=0.0, topic="/cmd_vel"):
        vector = self.types.types["geometry_msgs/msg/Vector3"]
        message = self.types.types["geometry_msgs/msg/Twist"](vector(vx, 0.0, 0.0), vector(0.0, 0.0, vyaw))
        self.write(topic, message, at_s)

    def answer(self, at_s, stamp_s, instruction, history=(), actions=("done()",), token_ids=(), **more):
        said = {
            "stamp_s": START_NS / SECOND + stamp_s,
            "instruction": instruction,
            "history": list(history),
            "actions": list(actions),
            "token_ids": list(token_ids),
            **more,
        }
        self.text(at_s, json.dumps(said), "/vlm/answer")

    def label(self, at_s, stamp_s, instruction, history=(), actions=("done()",), text=""):
        said = {
            "stamp_s": START_NS / SECOND + stamp_s,
            "instruction": instruction,
            "history": list(history),
            "actions": list(actions),
            "text": text,
        }
        self.text(at_s, json.dumps(said), "/vlm/label")

    def facts(self, at_s, target="0", draft="0", **settings):
        said = {"settings": settings, "target": {"revision": target}, "draft": {"revision": draft}}
        self.text(at_s, json.dumps(said), "/vlm/run")


def plain_walk(path, storage="mcap", seconds=6.0, compression=None):
    """Four frames a second, an instruction at 1 s, walking forward for three seconds, then turning left."""
    walk = Walk(path, storage, compression)
    for tick in range(round(seconds * 20)):
        at_s = tick / 20
        if tick == 20:
            walk.text(at_s, "go to the red chair")
        if tick % 5 == 0:
            walk.compressed(at_s)
        walk.twist(at_s, *((0.5, 0.0) if at_s < 3 else (0.0, 0.6)))
    walk.close()
    return path
