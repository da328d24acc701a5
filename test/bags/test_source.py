"""Bags of several recorders, whole and cut off at any byte."""

import random
import shutil
from collections import Counter

import pytest
from rosbags.rosbag1 import Writer as Writer1

from test.bags.walks import Walk, plain_walk
from vlm_spec_decode.bags.events import Events, Frame, Instructed, Moved, Topics
from vlm_spec_decode.bags.mcap_file import TruncatedMcap
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.ros1_file import TruncatedRos1
from vlm_spec_decode.bags.source import bag_name
from vlm_spec_decode.bags.sqlite_file import TruncatedSqlite
from vlm_spec_decode.core.errors import BagError


def events_of(path, topics=None):
    source = open_bag(path)
    try:
        events = Events(source, (topics or Topics()).choose(source.topics))
        return list(events), events.faults
    finally:
        source.close()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "ros1"])
def test_frames_words_and_motion_are_read_whatever_the_recorder(tmp_path, storage):
    path = plain_walk(tmp_path / ("walk.bag" if storage == "ros1" else "walk"), storage)
    events, faults = events_of(path)
    assert Counter(type(e) for e in events) == {Frame: 24, Instructed: 1, Moved: 120}
    assert not faults
    frame = next(e for e in events if isinstance(e, Frame))
    assert (frame.image.width, frame.image.height, frame.frame_id) == (64, 48, "camera")
    assert frame.stamp_s == pytest.approx(frame.at_ns / 1e9)


def test_one_file_is_a_bag_too(tmp_path):
    plain_walk(tmp_path / "walk")
    events, faults = events_of(tmp_path / "walk" / "walk.mcap")
    assert sum(isinstance(e, Frame) for e in events) == 24
    assert not faults


def test_a_bag_that_is_not_there_or_none_is_named(tmp_path):
    with pytest.raises(BagError, match="no such bag"):
        open_bag(tmp_path / "nowhere")
    (tmp_path / "text.mcap").write_text("not a bag")
    source = open_bag(tmp_path / "text.mcap")
    with pytest.raises(BagError, match="no topic shows camera images"):
        Topics().choose(source.topics)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match="not a bag"):
        open_bag(tmp_path / "empty")


@pytest.mark.parametrize(("storage", "cut_type"), [("mcap", TruncatedMcap), ("sqlite3", TruncatedSqlite)])
def test_without_its_end_a_bag_is_read_from_the_front(tmp_path, storage, cut_type):
    folder = plain_walk(tmp_path / "walk", storage, seconds=60.0)
    file = next(p for p in folder.iterdir() if p.suffix in (".mcap", ".db3"))
    whole, _ = events_of(folder)
    (folder / "metadata.yaml").unlink()
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 3 // 4])
    source = open_bag(folder)
    assert isinstance(source, cut_type)
    events, faults = events_of(folder)
    assert any("from its front" in name for name in faults)
    assert events == whole[: len(events)]
    assert len(events) > len(whole) // 4


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_cut_anywhere_nothing_crashes_and_what_is_read_is_a_beginning(tmp_path, storage):
    folder = plain_walk(tmp_path / "walk", storage)
    file = next(p for p in folder.iterdir() if p.suffix in (".mcap", ".db3"))
    whole, _ = events_of(folder)
    data, rng = file.read_bytes(), random.Random(0)
    for number in range(25):
        cut = tmp_path / f"cut{number}"
        shutil.copytree(folder, cut)
        (cut / file.name).write_bytes(data[: rng.randrange(len(data))])
        try:
            events, _ = events_of(cut)
        except BagError:
            continue
        if storage == "mcap":
            assert events == whole[: len(events)]
        # An sqlite row may begin before the cut and end behind it, and a smaller one after it be whole.
        rest = iter(whole)
        assert all(event in rest for event in events)


@pytest.mark.parametrize("compression", [None, *Writer1.CompressionFormat])
def test_a_ros1_bag_without_its_index_is_read_from_the_front(tmp_path, compression):
    path, cut = tmp_path / "walk.bag", tmp_path / "cut.bag"
    whole, _ = events_of(plain_walk(path, "ros1", compression=compression))
    data, rng = path.read_bytes(), random.Random(0)
    for length in (len(data) - 10, *(rng.randrange(len(data)) for _ in range(20))):
        cut.write_bytes(data[:length])
        try:
            events, faults = events_of(cut)
        except BagError:
            events, faults = [], ["from its front"]
        assert any("from its front" in fault for fault in faults)
        assert set(events) <= set(whole)
        frames = [event for event in whole if isinstance(event, Frame)]
        if compression is None:
            before = {frame for frame in frames if data.index(frame.data) + len(frame.data) <= length}
            assert set(events) >= before
    cut.write_bytes(data[:-10])
    assert isinstance(open_bag(cut), TruncatedRos1)
    assert set(events_of(cut)[0]) == set(whole)
    path.rename(tmp_path / "walk.bag.active")
    assert set(events_of(tmp_path / "walk.bag.active")[0]) == set(whole)


def test_what_cannot_be_read_is_skipped_and_counted(tmp_path):
    walk = Walk(tmp_path / "walk")
    walk.compressed(0.0)
    walk.compressed(0.5, data=b"\xff\xd8 no more")
    walk.compressed(1.0)
    walk.close()
    events, faults = events_of(tmp_path / "walk")
    assert len(events) == 2
    assert sum(faults.values()) == 1
    assert "/front/image/compressed" in next(iter(faults))


def test_topics_can_be_named_and_depth_is_never_taken_for_a_picture(tmp_path):
    walk = Walk(tmp_path / "walk")
    walk.compressed(0.0, topic="/a/depth/compressed")
    walk.compressed(0.0, topic="/b/rear/compressed")
    walk.compressed(0.0, topic="/c/front/compressed")
    walk.text(0.0, "go", topic="/spoken")
    walk.close()
    source = open_bag(tmp_path / "walk")
    assert Topics().choose(source.topics) == {"/c/front/compressed": "frame"}
    chosen = Topics(image="/b/rear/compressed", instruction="/spoken").choose(source.topics)
    assert chosen == {"/b/rear/compressed": "frame", "/spoken": "instruction"}
    with pytest.raises(BagError, match="/spoken"):
        Topics(image="/nothing").choose(source.topics)
    source.close()


def test_a_bag_called_bag_takes_its_folders_name(tmp_path):
    assert bag_name(tmp_path / "monday" / "bag") == "monday_bag"
    assert bag_name(tmp_path / "walk.mcap") == "walk"
