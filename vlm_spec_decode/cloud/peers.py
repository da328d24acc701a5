"""The robots that have shaken hands, and when each was last heard."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Peers:
    """Robots in the order in which they were last heard, at most `limit` of them."""

    limit: int
    _heard_s: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._heard_s)

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._heard_s

    def hear(self, peer: bytes, now_s: float) -> None:
        """A robot has said something; one that is not known stays unknown."""
        if peer in self._heard_s:
            self._heard_s[peer] = now_s
            self._heard_s.move_to_end(peer)

    def welcome(self, peer: bytes, now_s: float) -> bytes | None:
        """Know a robot from now on; return the longest silent one if it had to make room."""
        self._heard_s[peer] = now_s
        self._heard_s.move_to_end(peer)
        return self._heard_s.popitem(last=False)[0] if len(self._heard_s) > self.limit else None
