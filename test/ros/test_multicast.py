"""The robot's own video stream, from a sender on loopback."""

import io
import threading
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image as PilImage

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, RobotUnreachable
from vlm_spec_decode.ros.camera_sources import MulticastCamera, address_of, open_source

GROUP = "230.1.1.1"


@pytest.fixture
def sender():
    """Send red frames of 320x240 until told to end, as the robot does; return the port."""
    av = pytest.importorskip("av")
    port, ended = 20000 + 2 * (id(object()) // 64 % 5000), threading.Event()

    def run():
        address = f"rtp://{GROUP}:{port}?localaddr=127.0.0.1&ttl=0&pkt_size=1200"
        with av.open(address, "w", format="rtp") as out:
            stream = out.add_stream("libx264", rate=15, options={"tune": "zerolatency", "g": "5"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            pixels = np.full((240, 320, 3), (250, 10, 10), np.uint8)
            for index in range(100_000):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 15)
                for packet in stream.encode(frame):
                    out.mux(packet)
                if ended.wait(0.066):
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield port
    ended.set()
    thread.join(10)


def test_the_stream_becomes_frames(sender, eventually):
    clock = WallClock()
    camera = MulticastCamera("lo", clock, GROUP, sender)
    try:
        image, first_s = eventually(lambda: newest(camera), 60.0)
        assert (image.width, image.height) == (320, 240)
        with PilImage.open(io.BytesIO(image.jpeg)) as opened:
            assert np.abs(np.asarray(opened).mean(axis=(0, 1)) - (250, 10, 10)).max() < 20
        assert eventually(lambda: (found := newest(camera)) and found[1] > first_s)
    finally:
        camera.close()


def newest(camera):
    try:
        return camera.frame()
    except RobotUnreachable:
        return None


def test_a_stream_that_is_not_there_is_named():
    pytest.importorskip("av")
    camera = open_source("multicast", None, WallClock(), "lo")
    with pytest.raises(RobotUnreachable, match=r"230\.1\.1\.1:1720 on lo"):
        camera.frame()
    camera.close()


def test_the_interface_must_have_an_address():
    assert address_of("lo") == "127.0.0.1"
    with pytest.raises(ConfigError, match="none7"):
        address_of("none7")
