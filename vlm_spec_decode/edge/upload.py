"""An image on its way up: chunks within a window, so that drafts and heartbeats never wait behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlm_spec_decode.core.types import Image
from vlm_spec_decode.protocol.messages import ImageChunk

CHUNK_BYTES = 4096
"""33 ms of a 1 Mbit/s link: the longest that a draft may wait behind a chunk."""


@dataclass(slots=True)
class ImageUpload:
    """Go-back-N over one image. `wait_for_credit`: the cloud probably has it, so let it ask."""

    image: Image
    wait_for_credit: bool = False
    acknowledged: int = 0
    sent: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the cloud holds all bytes."""
        return self.acknowledged >= len(self.image.jpeg)

    def credit(self, received: int) -> None:
        """Take the cloud's word for the bytes that it holds in order."""
        self.wait_for_credit = False
        self.acknowledged = max(self.acknowledged, min(received, len(self.image.jpeg)))
        self.sent = max(self.sent, self.acknowledged)

    def go_back(self) -> None:
        """Send again what is not acknowledged."""
        self.sent = self.acknowledged
        self.wait_for_credit = False

    def restart(self) -> None:
        """Start over with a cloud that may have forgotten everything."""
        self.acknowledged = self.sent = 0

    def chunks(self, answer: int, epoch: int, window_bytes: int) -> Iterator[ImageChunk]:
        """Yield the chunks that the window allows now."""
        end = 0 if self.wait_for_credit else min(len(self.image.jpeg), self.acknowledged + window_bytes)
        while self.sent < end:
            data = self.image.jpeg[self.sent : min(self.sent + CHUNK_BYTES, end)]
            yield ImageChunk(answer, epoch, self.sent, data)
            self.sent += len(data)
