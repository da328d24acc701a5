"""Images by what they are: a follow-up on the same frame sends none."""

from __future__ import annotations

from collections import OrderedDict

from vlm_spec_decode.cloud.stats import CloudStats


class ImageStore:
    """JPEGs by their SHA-256, the least recently used dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int, stats: CloudStats) -> None:
        self._limit_bytes = limit_bytes
        self._stats = stats
        self._held: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, digest: bytes) -> bytes | None:
        """Return the image of this digest if it is still held."""
        if digest in self._held:
            self._held.move_to_end(digest)
            self._stats.image_hits += 1
        else:
            self._stats.image_misses += 1
        return self._held.get(digest)

    def put(self, digest: bytes, jpeg: bytes) -> None:
        """Hold an image whose digest the caller has computed."""
        if digest not in self._held:
            self._held[digest] = jpeg
            self._stats.image_bytes += len(jpeg)
        while self._stats.image_bytes > self._limit_bytes and len(self._held) > 1:
            self._stats.image_bytes -= len(self._held.popitem(last=False)[1])
