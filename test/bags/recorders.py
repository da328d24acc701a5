"""One walk, and the recorders of several years and makers that write it: mcap, sqlite3, metadata.yaml.

Formats are written by the libraries of their makers, so that no code of ours is on both sides.
"""

import io
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
import zstandard
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from PIL import Image as PilImage
from rosbags.typesys import Stores, get_typestore

SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND
STEP_NS = SECOND // 20
TYPES = {"": get_typestore(Stores.ROS2_HUMBLE), "ros1": get_typestore(Stores.ROS1_NOETIC)}
FRAMES, WORDS, SPEEDS = "/front/image/compressed", "/vlm/instruction", "/cmd_vel"
ZSTD = zstandard.ZstdCompressor(level=1)

Key = tuple[str, int]


@dataclass(frozen=True)
class Message:
    topic: str
    kind: str
    data: bytes
    at_ns: int

    @property
    def key(self) -> Key:
        return self.topic, self.at_ns


@lru_cache
def messages(ros: str = "", count: int = 96) -> tuple[Message, ...]:
    """A walk: speeds at 20 Hz, a frame with every fourth, an instruction with every twenty-fourth."""
    types, found = TYPES[ros], list[Message]()
    serialize = types.serialize_ros1 if ros else types.serialize_cdr
    rng = np.random.default_rng(0)

    def add(topic, kind, at_ns, *fields):
        message = types.types[kind](*fields)
        found.append(Message(topic, kind, bytes(serialize(message, kind)), at_ns))

    vector, time = types.types["geometry_msgs/msg/Vector3"], types.types["builtin_interfaces/msg/Time"]
    header = types.types["std_msgs/msg/Header"]
    for tick in range(count):
        at_ns = START_NS + tick * STEP_NS
        add(SPEEDS, "geometry_msgs/msg/Twist", at_ns, vector(0.5, 0.0, 0.0), vector(0.0, 0.0, 0.1 * tick))
        if tick % 4 == 0:
            stamp = time(at_ns // SECOND, at_ns % SECOND)
            pixels = np.frombuffer(jpeg(rng.integers(0, 255, (12, 16, 3), np.uint8)), np.uint8)
            top = header(0, stamp, "camera") if ros else header(stamp, "camera")
            add(FRAMES, "sensor_msgs/msg/CompressedImage", at_ns + 1, top, "jpeg", pixels)
        if tick % 24 == 0:
            add(WORDS, "std_msgs/msg/String", at_ns + 2, f"go to number {tick}")
    return tuple(found)


def jpeg(pixels) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def parts(count: int) -> list[tuple[Message, ...]]:
    """The walk in as many pieces as a recorder splits it into."""
    walk = messages()
    edges = [round(len(walk) * i / count) for i in range(count + 1)]
    return [walk[a:b] for a, b in pairwise(edges)]


def keys(walk) -> set[Key]:
    return {message.key for message in walk}


def definition(kind: str) -> str:
    return TYPES[""].generate_msgdef(kind, ros_version=2)[0]


# Storage -----------------------------------------------------------------------------------------


def write_mcap(path: Path, walk, compression="", defined="all", message_zstd=False, **options) -> None:
    """`defined`: which schemas have their definition: all, none, or only that of speeds (mixed)."""
    options = {"chunk_size": 4000, **options}
    with path.open("wb") as file:
        writer = McapWriter(file, compression=CompressionType[compression.upper() or "NONE"], **options)
        writer.start("ros2", "test")
        channels = {}
        for message in walk:
            if message.topic not in channels:
                has = defined == "all" or (defined == "mixed" and message.topic == SPEEDS)
                text = definition(message.kind).encode() if has else b""
                encoding = "ros2msg" if has or defined == "mixed" else ""
                schema = writer.register_schema(message.kind, encoding, text)
                channels[message.topic] = writer.register_channel(message.topic, "cdr", schema)
            data = ZSTD.compress(message.data) if message_zstd else message.data
            writer.add_message(channels[message.topic], message.at_ns, data, message.at_ns)
        writer.finish()


def write_sqlite(path: Path, walk, version=4, message_zstd=False, index=True, before=()) -> None:
    """Tables as rosbag2 has made them since its first release (`version` of the schema, 1 to 4)."""
    with closing(sqlite3.connect(path)) as db:
        for statement in before:
            db.execute(statement)
        db.execute("PRAGMA page_size=512")  # so that frames need overflow pages, as large ones do elsewhere
        qos = ", offered_qos_profiles TEXT NOT NULL" if version >= 2 else ""
        digest = ", type_description_hash TEXT NOT NULL" if version >= 4 else ""
        if version >= 3:
            db.execute("CREATE TABLE schema(schema_version INTEGER, ros_distro TEXT)")
            db.execute("CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata TEXT)")
            db.execute("INSERT INTO schema VALUES (?, 'jazzy')", (version,))
        db.execute(
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
            f"serialization_format TEXT NOT NULL{qos}{digest})"
        )
        db.execute(
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, "
            "timestamp INTEGER NOT NULL, data BLOB NOT NULL)"
        )
        if index:
            db.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
        if version >= 4:
            db.execute(
                "CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, "
                "encoding TEXT NOT NULL, encoded_message_definition TEXT NOT NULL, "
                "type_description_hash TEXT NOT NULL)"
            )
        topics = {message.topic: message.kind for message in walk}
        for number, (topic, kind) in enumerate(topics.items(), 1):
            more = [""] * (version >= 2) + [""] * (version >= 4)
            marks = ", ".join("?" * (4 + len(more)))
            db.execute(f"INSERT INTO topics VALUES ({marks})", (number, topic, kind, "cdr", *more))
            if version >= 4:
                row = (number, kind, "ros2msg", definition(kind), "")
                db.execute("INSERT INTO message_definitions VALUES (?, ?, ?, ?, ?)", row)
        numbers = {topic: number for number, topic in enumerate(topics, 1)}
        for message in walk:
            data = ZSTD.compress(message.data) if message_zstd else message.data
            row = (numbers[message.topic], message.at_ns, data)
            db.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", row)
        db.commit()


QOS_V4 = "- history: 3\n  depth: 0\n  reliability: 1\n  deadline:\n    sec: 1\n    nsec: 2"


def write_metadata(folder: Path, files, walk=None, version=9, storage="mcap", mode="", names=None) -> None:
    """Write what a recorder of this version does; `names` are other names of the files."""
    walk, topics = messages() if walk is None else walk, {}
    for message in walk:
        topics.setdefault((message.topic, message.kind), []).append(message)
    times = [message.at_ns for message in walk] or [0]
    names = [file.name for file in files] if names is None else names
    inside = {
        "version": version,
        "storage_identifier": storage,
        "duration": {"nanoseconds": max(times) - min(times)},
        "starting_time": {"nanoseconds_since_epoch": min(times)},
        "message_count": len(walk),
        "topics_with_message_count": [
            {
                "topic_metadata": {"name": topic, "type": kind, "serialization_format": "cdr"}
                | ({"offered_qos_profiles": [] if version >= 9 else QOS_V4} if version >= 4 else {})
                | ({"type_description_hash": ""} if version >= 7 else {}),
                "message_count": len(found),
            }
            for (topic, kind), found in topics.items()
        ],
        "relative_file_paths": names,
    }
    if version >= 3:
        inside |= {"compression_format": "zstd" if mode else "", "compression_mode": mode}
    if version >= 5:
        start = {"nanoseconds_since_epoch": min(times)}
        inside["files"] = [
            {"path": name, "starting_time": start, "duration": {"nanoseconds": 1}, "message_count": 1}
            for name in names
        ]
    if version >= 6:
        inside["custom_data"] = None
    if version >= 8:
        inside["ros_distro"] = "jazzy"
    text = yaml.safe_dump({"rosbag2_bagfile_information": inside}, sort_keys=False)
    (folder / "metadata.yaml").write_text(text)


STORAGES = {
    "mcap": (".mcap", partial(write_mcap)),
    "mcap zstd": (".mcap", partial(write_mcap, compression="zstd")),
    "mcap lz4": (".mcap", partial(write_mcap, compression="lz4")),
    "mcap unchunked": (".mcap", partial(write_mcap, use_chunking=False)),
    "sqlite3 v4": (".db3", partial(write_sqlite, version=4)),
    "sqlite3 v1": (".db3", partial(write_sqlite, version=1)),
}


def split(folder: Path, storage: str, count: int, name="walk") -> list[Path]:
    """Write the walk as `count` files without metadata."""
    suffix, write = STORAGES[storage]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}_{number}{suffix}" for number in range(count)]
    for file, walk in zip(files, parts(count), strict=True):
        write(file, walk)
    return files


def kind_of(storage: str) -> str:
    return storage.partition(" ")[0]
