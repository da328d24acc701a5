"""What the edge's draft says before the cloud has committed it: its best path, as far as it is wanted.

A draft changes no answer, so nobody needs to see it, unless an operator lets the robot start on it
(`mission.draft_start`). The edge half of a strategy offers its best path here, and yields no tokens when it
is told that there is something new to see. Strategies that offer nothing are never started on: so far only
`hybrid` grows its draft on its own while it waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm_spec_decode.core.types import Tokens

CHANCE_STEP = 0.05
"""Smaller changes of a path's chance are no news."""


@dataclass(slots=True)
class DraftPreview:
    """Reads drafted paths until they are long enough.

    `read` gets all tokens, committed and drafted, and the chance of the drafted ones; it returns whether they
    hold what is waited for, and whether that is news. `is_whole`: the newest path holds it, so nothing more
    needs to be drafted for it. `is_closed`: nobody looks any more.
    """

    read: Callable[[Tokens, float], tuple[bool, bool]]
    is_whole: bool = False
    is_closed: bool = False
    _last: tuple[Tokens, int] = ((), 0)

    @property
    def is_wanted(self) -> bool:
        """Whether the draft is to go on, in time that is otherwise idle."""
        return not (self.is_closed or self.is_whole)

    def offer(self, prefix: Tokens, path: Tokens, chance: float) -> bool:
        """Read the committed `prefix` with the drafted `path` below it; return whether that is news.

        `chance` is the probability of the whole path, by the draft and what it has been worth.
        """
        offered = prefix + path, int(chance / CHANCE_STEP)
        if self.is_closed or offered == self._last:
            return False
        self._last = offered
        self.is_whole, is_news = self.read(prefix + path, chance)
        return is_news
