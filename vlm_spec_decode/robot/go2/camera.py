"""The Go2's front camera behind `Camera`, through the SDK's VideoClient: one JPEG per request."""

from __future__ import annotations

import io

from PIL import Image as PilImage
from PIL import UnidentifiedImageError
from unitree_sdk2py.go2.video.video_client import VideoClient

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ImageError, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.robot.go2 import codes
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.sdk import borrow, give_back, join


def to_image(jpeg: bytes) -> Image:
    """Read the size of a JPEG. Raises ImageError if these bytes are none."""
    try:
        with PilImage.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            return Image(jpeg, picture.width, picture.height)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageError(f"the camera sent {len(jpeg)} bytes that are no JPEG") from error


class Go2Camera:
    """A `Camera`. Use it from one thread; frames are made when they are asked for."""

    def __init__(self, config: Go2Config, clock: Clock | None = None) -> None:
        """Join the network, raising as `Go2Driver.start` does; only a frame shows if a camera answers."""
        self._config = config
        self._clock = clock or WallClock()
        join(config.domain, config.interface)
        self._client: VideoClient | None = borrow(VideoClient, config.call_timeout_s)

    def frame(self) -> tuple[Image, float]:
        """Return a new frame and its capture time by this machine's clock.

        The robot sends no stamp; the time is that of the request, the earliest at which the frame can have
        been taken, so that it never looks fresher than it is. Sporadic 3104 are asked again. Raises
        RobotUnreachable after `frame_s` without an answer, RobotRefused, or ImageError.
        """
        if self._client is None:
            raise RobotUnreachable("the camera has been closed")
        deadline_s = self._clock.now() + self._config.frame_s
        while True:
            asked_s = self._clock.now()
            code, data = self._client.GetImageSample()
            if code == codes.OK:
                # The SDK hands over a list of integers.
                return to_image(bytes(data)), asked_s
            if code not in codes.UNCERTAIN:
                raise codes.refused("GetImageSample", code)
            if self._clock.now() >= deadline_s:
                raise RobotUnreachable(f"camera: GetImageSample returned {code} ({codes.meaning(code)})")

    def close(self) -> None:
        """Leave. Idempotent."""
        client, self._client = self._client, None
        give_back(client)
