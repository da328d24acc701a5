"""Bags whose camera is a video: the Go2's own, Foxglove's, and H.264 where a JPEG was expected."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image as PilImage
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from test.bags.recorders import START_NS, STEP_NS, Message, write_sqlite
from vlm_spec_decode.bags import events as events_module
from vlm_spec_decode.bags.events import Events, Frame, Topics
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.source import OTHERS
from vlm_spec_decode.core.errors import BagError, ConfigError
from vlm_spec_decode.edge import image_upload as video

TYPES = get_typestore(Stores.ROS2_HUMBLE)
for _kind, _definition in OTHERS.items():
    _found = get_types_from_msg(_definition, _kind)
    TYPES.register({name: fields for name, fields in _found.items() if name not in TYPES.fielddefs})


def encoded(count=12, size=(320, 240), every=5):
    """Pieces of H.264, one a picture; the blue edge moves right by 8 pixels a picture."""
    av = pytest.importorskip("av")
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height = size
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 15)
    context.options = {"tune": "zerolatency", "g": str(every), "profile": "baseline"}
    pieces = []
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), (250, 10, 10), np.uint8)
        pixels[:, : size[0] * (number + 1) // 40] = (10, 10, 250)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = number
        pieces += [bytes(packet) for packet in context.encode(frame)]
    pieces += [bytes(packet) for packet in context.encode(None)]
    return pieces


def array(piece):
    return np.frombuffer(piece, np.uint8)


def go2(pieces, name="video720p"):
    kind, empty = TYPES.types[video.GO2_VIDEO], array(b"")
    sizes = dict.fromkeys(video.GO2_STREAMS, empty)
    return [kind(number, **sizes | {name: array(piece)}) for number, piece in enumerate(pieces)]


def stamp(number):
    ns = START_NS + number * STEP_NS
    return TYPES.types["builtin_interfaces/msg/Time"](ns // 10**9, ns % 10**9)


def foxglove(pieces):
    kind = TYPES.types[video.FOXGLOVE_VIDEO]
    return [kind(stamp(n), "front", array(piece), "h264") for n, piece in enumerate(pieces)]


def compressed(pieces):
    kind, header = TYPES.types["sensor_msgs/msg/CompressedImage"], TYPES.types["std_msgs/msg/Header"]
    return [kind(header(stamp(n), "front"), "h264", array(piece)) for n, piece in enumerate(pieces)]


def ffmpeg(pieces):
    kind, header = TYPES.types[video.FFMPEG_PACKET], TYPES.types["std_msgs/msg/Header"]
    return [
        kind(header(stamp(n), "front"), 320, 240, "h264", n, 0, False, array(piece))
        for n, piece in enumerate(pieces)
    ]


def bag(folder, made):
    """As Humble's recorder wrote it: no definitions anywhere."""
    folder.mkdir()
    kind = made[0].__msgtype__
    walk = [
        Message("/frontvideostream", kind, bytes(TYPES.serialize_cdr(message, kind)), START_NS + n * STEP_NS)
        for n, message in enumerate(made)
    ]
    write_sqlite(folder / "walk_0.db3", walk, version=3)
    return folder


def frames(folder):
    source = open_bag(folder)
    events = Events(source, Topics().choose(source.topics))
    found = [event for event in events if isinstance(event, Frame)]
    source.close()
    return found, events.faults


def edge_px(image):
    """Where blue ends, in pixels of a picture 320 wide."""
    with PilImage.open(io.BytesIO(image.jpeg)) as opened:
        row = np.asarray(opened.resize((320, 240)).convert("RGB"))[120].astype(int)
    return int((row[:, 2] > row[:, 0]).sum())


@pytest.mark.parametrize("make", [go2, foxglove, compressed, ffmpeg])
def test_every_picture_of_a_video_is_a_frame(tmp_path, make):
    found, faults = frames(bag(tmp_path / "walk", make(encoded())))
    assert len(found) == 12
    assert not faults
    for number, frame in enumerate(found):
        assert abs(edge_px(frame.image) - 8 * (number + 1)) <= 6
        assert frame.stamp_s == pytest.approx((START_NS + number * STEP_NS) / 1e9)
        assert frame.num_bytes >= 320 * 240


def test_what_comes_before_the_first_whole_picture_is_counted(tmp_path):
    found, faults = frames(bag(tmp_path / "walk", go2(encoded()[2:])))
    assert len(found) == 7
    assert sum(faults.values()) == 3
    assert all("before the first whole picture" in fault for fault in faults)


def test_of_several_sizes_the_largest_is_shown(tmp_path):
    large, small = go2(encoded(size=(640, 480))), go2(encoded(), "video360p")
    both = [message for pair in zip(small, large, strict=True) for message in pair]
    found, faults = frames(bag(tmp_path / "walk", both))
    assert not faults
    assert [frame.message.frame.width for frame in found] == [320] + [640] * 12


def test_without_pyav_the_bag_is_refused_with_what_to_install(tmp_path, monkeypatch):
    folder = bag(tmp_path / "walk", go2([b"\0\0\0\1gabc"]))
    for module in (video, events_module):
        monkeypatch.setattr(module, "has_video", lambda: False)
    source = open_bag(folder)
    with pytest.raises(BagError, match=r"pip install 'vlm_spec_decode\[video\]'"):
        Topics().choose(source.topics)
    with pytest.raises(ConfigError, match="PyAV"):
        video.VideoStream()


def test_h264_where_a_jpeg_was_expected_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "has_video", lambda: False)
    found, faults = frames(bag(tmp_path / "walk", compressed([b"\0\0\0\1gabc"])))
    assert not found
    assert any("PyAV" in fault for fault in faults)


def test_pieces_that_are_damaged_are_counted(tmp_path):
    pieces = encoded()
    pieces[3], pieces[7] = b"", b"\0\0\0\1\xff\xff\xff"
    found, faults = frames(bag(tmp_path / "walk", go2(pieces)))
    assert len(found) + sum(faults.values()) >= 11
    assert any("no bytes" in fault for fault in faults)
