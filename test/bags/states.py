"""The states in which recorders, people and power cuts leave a bag.

Each function writes one bag into an empty folder and returns it with the keys of the messages that lie there
in full. Formats are written by `test.bags.recorders`.
"""

import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import zstandard
from mcap.opcode import Opcode
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Writer1

from test.bags.recorders import (
    SECOND,
    START_NS,
    STORAGES,
    TYPES,
    Key,
    Message,
    definition,
    keys,
    kind_of,
    messages,
    parts,
    split,
    write_mcap,
    write_metadata,
    write_sqlite,
)


def whole(folder, storage, count, version=9):
    """As a recorder leaves it that was ended in order."""
    files = split(folder / "walk", storage, count)
    if version:
        write_metadata(folder / "walk", files, version=version, storage=kind_of(storage))
    return folder / "walk", keys(messages())


def one_file(folder, storage):
    (file,) = split(folder / "walk", storage, 1)
    return file, keys(messages())


def spoilt_metadata(folder, storage, text):
    bag, read = whole(folder, storage, 3)
    path = bag / "metadata.yaml"
    said = path.read_text()
    path.write_bytes(text(said) if callable(text) else text)
    return bag, read


METADATA = {
    "empty": b"",
    "zeros": bytes(4096),
    "not text": b"\xff\xfe\x00garbage",
    "not YAML": b"rosbag2_bagfile_information: {{{",
    "a list": b"- 1\n- 2\n",
    "of something else": b"hello: 1\n",
    "without keys": b"rosbag2_bagfile_information:\n  version: 9\n",
    "half": lambda said: said[: len(said) // 2].encode(),
    "a file less": lambda said: (
        said.replace("  - walk_1.mcap\n", "").replace("  - walk_1.db3\n", "").encode()
    ),
    "newer version": lambda said: said.replace("version: 9", "version: 99").encode(),
    "other storage": lambda said: said.replace("_identifier: ", "_identifier: my_").encode(),
    "wrong types": lambda said: said.replace("message_count: ", "message_count: x").encode(),
    "a topic less": lambda said: said.replace("/cmd_vel", "/other").encode(),
    "other QoS": lambda said: said.replace(
        "offered_qos_profiles: []", "offered_qos_profiles: [{depth: 1}]"
    ).encode(),
}


def renamed(folder, storage, how):
    """Somebody renamed the folder, the files, or both; or an old recorder wrote the folder's name too."""
    files = split(folder / "walk", storage, 3)
    names = [file.name for file in files]
    if how == "file":
        moved = [file.rename(file.with_name(file.name.replace("walk", "monday"))) for file in files]
        write_metadata(folder / "walk", moved, storage=kind_of(storage), names=names)
    else:
        prefix = {"posix": "walk/", "windows": "walk\\", "absolute": "/home/me/walk/"}.get(how, "")
        told = [prefix + name for name in names]
        write_metadata(folder / "walk", files, version=3, storage=kind_of(storage), names=told)
    if how == "folder":
        (folder / "walk").rename(folder / "bags of monday")
        return folder / "bags of monday", keys(messages())
    return folder / "walk", keys(messages())


def missing(folder, storage, names_it):
    """One of the files was not copied; or one more lies there than metadata.yaml knows of."""
    files = split(folder / "walk", storage, 4)
    if names_it:
        write_metadata(folder / "walk", files, storage=kind_of(storage))
        files[2].unlink()
        kept = [walk for number, walk in enumerate(parts(4)) if number != 2]
        return folder / "walk", {key for walk in kept for key in keys(walk)}
    known = [message for walk in parts(4)[:3] for message in walk]
    write_metadata(folder / "walk", files[:3], known, storage=kind_of(storage))
    return folder / "walk", keys(messages())


def foreign(folder, storage):
    """A file of another recording lies in the folder: not read, but counted."""
    bag, read = whole(folder, storage, 2)
    suffix, write = STORAGES[storage]
    later = [Message(m.topic, m.kind, m.data, m.at_ns + 1000 * SECOND) for m in messages()]
    write(bag / f"other{suffix}", later)
    return bag, read | keys(later)


def packed(folder, storage, count, what):
    """File compression: as recorded, unpacked by hand, both side by side, under another suffix, cut off."""
    files = split(folder / "walk", storage, count)
    names = [f"{file.name}.zstd" for file in files]
    write_metadata(folder / "walk", files, storage=kind_of(storage), mode="FILE", names=names)
    read = keys(messages())
    for number, file in enumerate(files):
        if what != "unpacked":
            suffix = ".zst" if what == "zst" else ".zstd"
            data = zstandard.ZstdCompressor(level=1).compress(file.read_bytes())
            if what == "cut" and number == count - 1:
                data = data[: len(data) * 2 // 3]
                read -= keys(parts(count)[-1])
            file.with_name(file.name + suffix).write_bytes(data)
            if what == "empty beside":
                file.write_bytes(b"")
        if what not in ("unpacked", "both", "empty beside"):
            file.unlink()
    if what == "no metadata":
        (folder / "walk" / "metadata.yaml").unlink()
    return folder / "walk", read


def packed_messages(folder, storage, told):
    """Message compression, with metadata.yaml or not, or told of and not there."""
    suffix, write = STORAGES[storage]
    bag = folder / "walk"
    bag.mkdir()
    write(bag / f"walk_0{suffix}", messages(), message_zstd=told != "only told")
    if told != "not told":
        write_metadata(bag, [bag / f"walk_0{suffix}"], storage=kind_of(storage), mode="MESSAGE")
    return bag, keys(messages())


def cut(folder, storage, share, has_metadata=False):
    """The power was cut: the last of three files has no end."""
    files = split(folder / "walk", storage, 3)
    if has_metadata:
        write_metadata(folder / "walk", files, storage=kind_of(storage))
    walk, last = parts(3), files[-1]
    length = int(last.stat().st_size * share)
    read = keys(walk[0]) | keys(walk[1]) | in_front(storage, walk[2], last, length)
    last.write_bytes(last.read_bytes()[:length])
    return folder / "walk", read


def in_front(storage, walk, file, length) -> set[Key]:
    """Messages of a whole file that lie before a cut: of compressed chunks those in whole ones."""
    data = file.read_bytes()
    if kind_of(storage) == "sqlite3":
        return {m.key for m, end in zip(walk, sqlite_ends(file), strict=True) if end <= length}
    if storage in ("mcap", "mcap unchunked"):
        return {m.key for m in walk if data.index(m.data) + len(m.data) <= length}
    found, at = set[Key](), 8
    while at + 9 <= length:
        opcode, size = struct.unpack_from("<BQ", data, at)
        at += 9 + size
        if opcode == Opcode.CHUNK and at <= length:
            first, last = struct.unpack_from("<QQ", data, at - size)
            found |= {m.key for m in walk if first <= m.at_ns <= last}
    return found


def sqlite_ends(file) -> list[int]:
    """Where each message is there in full with the list of topics, by sqlite's own account of its pages."""
    with closing(sqlite3.connect(file)) as db:
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        query = "SELECT name, path, pageno, pagetype, ncell FROM dbstat ORDER BY path"
        pages = db.execute(query).fetchall()
    others = {"topics", "message_definitions"}
    topics = max(number for name, _, number, _, _ in pages if name in others)
    last: dict[tuple[str, int], int] = {}
    for name, path, number, kind, cells in pages:
        if name == "messages" and kind == "leaf":
            last |= {(path, cell): number for cell in range(cells)}
        elif name == "messages" and kind == "overflow":
            leaf, _, place = path.rpartition("/")
            key = (f"{leaf}/", int(place.partition("+")[0], 16))
            last[key] = max(last.get(key, 0), number)
    return [max(topics, number) * page_bytes for _, number in sorted(last.items())]


def tail(folder, storage, what):
    """What a file system leaves of the last file: nothing, or zeros."""
    files = split(folder / "walk", storage, 3)
    data = files[-1].read_bytes()
    walk = parts(3)
    read = keys(walk[0]) | keys(walk[1])
    if what == "half zeros":
        half = len(data) // 2
        read |= in_front(storage, walk[2], files[-1], half)
        files[-1].write_bytes(data[:half] + bytes(len(data) - half))
    else:
        files[-1].write_bytes(bytes(4096) if what == "zeros" else b"")
    return folder / "walk", read


def log(folder, mode):
    """The recorder was killed while rows lay in the write-ahead log, or beside a rollback journal."""
    bag = folder / "walk"
    bag.mkdir()
    live = folder / "live.db3"
    first, second = parts(2)
    write_sqlite(live, first, before=["PRAGMA page_size=512", f"PRAGMA journal_mode={mode}"])
    with closing(sqlite3.connect(live)) as db:
        db.execute("PRAGMA cache_size=2")  # so that pages go to the file before the change is finished
        numbers = dict(db.execute("SELECT name, id FROM topics"))
        for message in second:
            row = (numbers[message.topic], message.at_ns, message.data)
            db.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", row)
        if mode == "WAL":
            db.commit()
        for ending in ("", "-wal", "-journal"):
            if (there := Path(f"{live}{ending}")).exists():
                shutil.copy(there, bag / f"walk_0.db3{ending}")
    assert (bag / f"walk_0.db3-{'wal' if mode == 'WAL' else 'journal'}").stat().st_size
    return bag, keys(messages()) if mode == "WAL" else keys(first)


def damaged(folder, storage, what):
    """Bytes in the middle are not those that were written."""
    (file,) = split(folder / "walk", storage, 1)
    if what == "told":
        write_metadata(folder / "walk", [file], storage=kind_of(storage))
    data = bytearray(file.read_bytes())
    if kind_of(storage) == "sqlite3":
        page = len(data) // 4096 // 2 * 4096
        data[page : page + 4096] = b"\xaa" * 4096
        file.write_bytes(data)
        return folder / "walk", keys(messages())
    chunks, at = [], 8
    while data[at] not in (Opcode.DATA_END, Opcode.FOOTER):
        opcode, size = struct.unpack_from("<BQ", data, at)
        if opcode == Opcode.CHUNK:
            chunks.append((at, size))
        at += 9 + size
    victim = chunks[0] if what == "first chunk" else chunks[len(chunks) // 2]
    middle = victim[0] + 9 + victim[1] // 2
    data[middle : middle + 40] = bytes(b ^ 0x55 for b in data[middle : middle + 40])
    if what == "no summary":
        data = data[:at]
    file.write_bytes(data)
    return folder / "walk", keys(messages())  # what cannot be trusted has to be counted


def scratched(folder, storage, seed):
    """Some bytes anywhere are not those that were written; the bag's whole number of messages is known."""
    rng = np.random.default_rng(seed)
    files = split(folder / "walk", storage, 3)
    write_metadata(folder / "walk", files, storage=kind_of(storage))
    data = bytearray(files[1].read_bytes())
    at = int(rng.integers(len(data)))
    data[at : at + 8] = bytes(b ^ 0x5A for b in data[at : at + 8])
    files[1].write_bytes(data)
    return folder / "walk", keys(messages())


def indexes(folder, **options):
    """An mcap file as other tools write it."""
    bag = folder / "walk"
    bag.mkdir()
    write_mcap(bag / "walk_0.mcap", messages(), **options)
    return bag, keys(messages())


def doubled_index(folder):
    """A tool that repairs files wrote every chunk index twice."""
    bag, read = indexes(folder)
    file = bag / "walk_0.mcap"
    data = file.read_bytes()
    footer = data[-37:]
    (summary,) = struct.unpack_from("<Q", footer, 9)
    at, doubles = summary, b""
    while at < len(data) - 37:
        opcode, size = struct.unpack_from("<BQ", data, at)
        if opcode == Opcode.CHUNK_INDEX:
            doubles += data[at : at + 9 + size]
        at += 9 + size
    end = footer[:9] + struct.pack("<QQI", summary, 0, 0) + footer[29:]
    file.write_bytes(data[:-37] + doubles + end)
    return bag, read


def no_order(folder, **options):
    """Messages in the file are not in the order of their times."""
    walk = list(messages())
    np.random.default_rng(1).shuffle(walk)
    bag = folder / "walk"
    bag.mkdir()
    write_mcap(bag / "walk_0.mcap", walk, **options)
    return bag, keys(messages())


def overlapping(folder, storage):
    """Two files whose times overlap: every second message in each."""
    suffix, write = STORAGES[storage]
    bag = folder / "walk"
    bag.mkdir()
    for number in (0, 1):
        write(bag / f"walk_{number}{suffix}", messages()[number::2])
    return bag, keys(messages())


def ros1_file(folder, compression=None, what="whole"):
    path = folder / "walk.bag"
    types, walk = TYPES["ros1"], messages("ros1")
    writer = Writer1(path)
    if compression:
        writer.set_compression(compression)
    writer.chunk_threshold = 4000
    with writer:
        connections = {}
        for message in walk:
            if message.topic not in connections:
                connections[message.topic] = writer.add_connection(
                    message.topic, message.kind, typestore=types
                )
            writer.write(connections[message.topic], message.at_ns, message.data)
    if what == "active":
        return path.rename(folder / "walk.bag.active"), keys(walk)
    if what == "folder":
        return folder, keys(walk)
    data = bytearray(path.read_bytes())
    if what in ("no index", "half"):
        length = len(data) - 200 if what == "no index" else len(data) // 2
        read = {m.key for m in walk if 0 <= data.find(m.data) <= length - len(m.data)}
        path.write_bytes(data[:length])
        return path, read
    if what == "damaged":
        middle = len(data) // 2
        data[middle : middle + 40] = bytes(b ^ 0x55 for b in data[middle : middle + 40])
        path.write_bytes(data)
    return path, keys(walk)


def with_attachments(folder):
    """Between the messages lie a file, a table of settings, and a record of a kind of its own."""
    bag = folder / "walk"
    bag.mkdir()
    with (bag / "walk_0.mcap").open("wb") as file:
        writer = McapWriter(file, chunk_size=4000)
        writer.start("ros2", "test")
        channels = {}
        for number, message in enumerate(messages()):
            if message.topic not in channels:
                schema = writer.register_schema(message.kind, "ros2msg", definition(message.kind).encode())
                channels[message.topic] = writer.register_channel(message.topic, "cdr", schema)
            writer.add_message(channels[message.topic], message.at_ns, message.data, message.at_ns)
            if number % 40 == 0:
                writer.add_attachment(message.at_ns, message.at_ns, "map.png", "image/png", bytes(5000))
                writer.add_metadata("settings", {"strategy": "hybrid"})
        writer.finish()
    return bag, keys(messages())


def with_other_encodings(folder):
    """One topic is protobuf, as Foxglove's recorders write it: named, and the others read."""
    bag, read = indexes(folder)
    with (bag / "walk_1.mcap").open("wb") as file:
        writer = McapWriter(file)
        writer.start("", "test")
        schema = writer.register_schema("foxglove.CompressedImage", "protobuf", b"\x0a\x00")
        channel = writer.register_channel("/camera", "protobuf", schema)
        for number in range(5):
            writer.add_message(channel, START_NS + number, b"\x08\x01", START_NS + number)
        writer.finish()
    return bag, read


def ros1_in_mcap(folder):
    """ROS 1 messages that a converter put into mcap."""
    bag, types = folder / "walk.mcap", TYPES["ros1"]
    with bag.open("wb") as file:
        writer = McapWriter(file)
        writer.start("ros1", "test")
        channels = {}
        for message in messages("ros1"):
            if message.topic not in channels:
                text = types.generate_msgdef(message.kind)[0].encode()
                name = message.kind.replace("/msg/", "/")
                schema = writer.register_schema(name, "ros1msg", text)
                channels[message.topic] = writer.register_channel(message.topic, "ros1", schema)
            writer.add_message(channels[message.topic], message.at_ns, message.data, message.at_ns)
        writer.finish()
    return bag, keys(messages("ros1"))


def nothing(folder, what):
    bag = folder / "walk"
    bag.mkdir()
    if what == "zero bytes":
        (bag / "walk_0.mcap").write_bytes(b"")
        (bag / "walk_1.db3").write_bytes(b"")
    elif what == "metadata alone":
        write_metadata(bag, [bag / "walk_0.mcap"])
    elif what == "other files":
        (bag / "notes.txt").write_text("hello")
    elif what == "bags inside":
        split(bag / "monday", "mcap", 1)
    elif what == "garbage":
        (bag / "walk_0.db3").write_bytes(b"garbage" * 1000)
    elif what == "old ROS 1":
        (bag / "walk.bag").write_bytes(b"#ROSBAG V1.2\n" + bytes(100))
    return bag, set()


def sqlite_alone(folder, **options):
    bag = folder / "walk"
    bag.mkdir()
    write_sqlite(bag / "walk_0.db3", messages(), **options)
    return bag, keys(messages())
