"""The camera's newest picture, and the pages that wait for the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from vlm_spec_decode.core.types import Image


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One picture of the camera, a JPEG; `number` rises."""

    jpeg: bytes
    number: int


class VideoFeed:
    """The newest picture of the camera, and who waits for the next one. Safe for threads.

    Pictures are taken as they come; a page that is slow misses some. While nobody watches nothing is kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[VideoFrame], None]] = []
        self._viewers = self._number = 0
        self._newest: VideoFrame | None = None

    @property
    def viewers(self) -> int:
        """How many pages show the video."""
        return self._viewers

    def put(self, image: Image) -> None:
        """Pass on a new picture."""
        if not self._viewers:
            return
        with self._lock:
            self._number += 1
            frame = self._newest = VideoFrame(image.jpeg, self._number)
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(frame)

    def join(self) -> None:
        """Count one page more."""
        with self._lock:
            self._viewers += 1

    def leave(self) -> None:
        """Count one page less."""
        with self._lock:
            self._viewers -= 1
            if not self._viewers:
                self._newest = None

    def after(self, number: int, call: Callable[[VideoFrame], None]) -> None:
        """Call back with the first picture whose number is above `number`: now, or when it comes."""
        with self._lock:
            frame = self._newest
            if frame is None or frame.number <= number:
                self._waiting.append(call)
                return
        call(frame)
