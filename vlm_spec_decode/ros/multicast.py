"""The Go2's own video stream: H.264 over RTP, multicast on the robot's Ethernet (15 frames a second, 720p).

Costs the robot nothing for another listener and comes faster than the VideoClient's requests; needs PyAV, and
a cable, because Wi-Fi carries no multicast. The stream says nothing of its capture time: a frame counts from
when it came out of the decoder, so that it is some 0.1 s older than its stamp.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

from vlm_spec_decode.core.errors import ConfigError, RobotUnreachable
from vlm_spec_decode.core.images import to_jpeg
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.edge.image_upload import check_video

GROUP, PORT = "230.1.1.1", 1720
SIOCGIFADDR = 0x8915
OPEN_S = 5.0
RETRY_S = 1.0
SILENCE_S = 2.0

SESSION = """v=0
o=- 0 0 IN IP4 {group}
s=Go2
c=IN IP4 {group}
t=0 0
m=video {port} RTP/AVP 96
a=rtpmap:96 H264/90000
"""
"""What a sender would announce; the robot announces nothing."""


def address_of(interface: str) -> str:
    """Return the IPv4 address of a network interface. Raises ConfigError if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface[:15].encode()))
        except OSError as error:
            raise ConfigError(f"source: interface {interface!r} has no address: {error.strerror}") from error
    return socket.inet_ntoa(found[20:24])


class MulticastCamera:
    """The newest frame of the stream, decoded on a thread of its own that looks again after every loss."""

    def __init__(self, interface: str, clock: Clock, group: str = GROUP, port: int = PORT) -> None:
        """Raises ConfigError without PyAV or without an address on `interface`."""
        check_video("source: the multicast stream")
        self._clock = clock
        self._where = f"{group}:{port} on {interface}"
        self._address, self._session = address_of(interface), SESSION.format(group=group, port=port)
        self._newest: tuple[Any, float] | None = None
        self._problem = "nothing has come yet"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="multicast", daemon=True)
        self._thread.start()

    def frame(self) -> tuple[Image, float]:
        """Return the newest frame as JPEG. Raises RobotUnreachable while nothing comes."""
        newest = self._newest
        if newest is None or self._clock.now() - newest[1] > SILENCE_S:
            raise RobotUnreachable(f"no video from {self._where}: {self._problem}")
        return to_jpeg(newest[0].to_image()), newest[1]

    def close(self) -> None:
        """Leave the group; the thread ends with its next frame or time-out. Idempotent."""
        self._closed.set()

    def _run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="vsd-video-") as folder:
            session = Path(folder, "go2.sdp")
            session.write_text(self._session, encoding="ascii")
            while not self._closed.is_set():
                self._listen(session)
                self._closed.wait(RETRY_S)

    def _listen(self, session: Path) -> None:
        import av

        options = {
            "protocol_whitelist": "file,udp,rtp",
            "localaddr": self._address,
            "fflags": "nobuffer",
            "analyzeduration": "1000000",
            "probesize": "200000",
        }
        try:
            with av.open(str(session), format="sdp", options=options, timeout=OPEN_S) as stream:
                for frame in stream.decode(video=0):
                    self._newest = (frame, self._clock.now())
                    if self._closed.is_set():
                        return
            self._problem = "the stream has ended"
        except (av.FFmpegError, IndexError, OSError) as error:  # IndexError: no picture was announced
            self._problem = str(error)
