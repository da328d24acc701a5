"""Image features by the content of the image: the same frame passes the vision tower once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

LIMIT_BYTES = 256 * 1024 * 1024


class FeatureCache:
    """Features by the SHA-256 of the JPEG, the least recently used dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.hits = 0
        self.misses = 0
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, digest: bytes, compute: Callable[[], Tensor]) -> Tensor:
        """Return the features of this image, computed if they are not held."""
        features = self._held.pop(digest, None)
        if features is None:
            self.misses += 1
            features = compute()
        else:
            self.hits += 1
        self._held[digest] = features
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > self._limit_bytes:
            self._held.popitem(last=False)
        return features
