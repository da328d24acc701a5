"""Drafts that cost no draft step: forced tokens of the grammar, and repeated runs of earlier text.

Sources are token runs (the prompt's instruction, the previous answer). Where the last tokens occur in
one of them, the tokens that followed there are proposed, with a weight that is learned per source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vlm_spec_decode.core.ports import Drafter
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.strategies.estimators import RunningMean
from vlm_spec_decode.strategies.hybrid.draft_tree import DraftTree, TreeNode

MIN_MATCH = 2
RUN = 8
FORCED_WEIGHT = -0.001


@dataclass(slots=True)
class PromptLookup:
    """Finds continuations of the committed tokens in `hints`."""

    hints: tuple[Tokens, ...] = ()
    trust: RunningMean = field(default_factory=lambda: RunningMean(0.6, trust=3))
    _offered: tuple[int, Tokens] = (0, ())

    def offer(self, growth: DraftTree, drafter: Drafter) -> None:
        """Add forced tokens below what is likely, and remembered ones below the root."""
        for _, place in growth.ranked(0.05)[:8]:
            if not place.expanded and (run := drafter.forced(growth.prefix + place.path())):
                growth.offer_path(place, run, FORCED_WEIGHT)
                _mark_expanded(place, run)
        self._judge(growth.prefix)
        position, _ = self._offered
        if position == len(growth.prefix) and position:
            return
        run = self._continuation(growth.prefix)
        self._offered = (len(growth.prefix), run)
        growth.offer_path(growth.root, run, math.log(max(0.05, self.trust.value)))

    def _judge(self, prefix: Tokens) -> None:
        position, run = self._offered
        if run and len(prefix) > position:
            self.trust.learn(float(prefix[position] == run[0]))
            self._offered = (position, ())

    def _continuation(self, prefix: Tokens) -> Tokens:
        """Return what followed the longest match of the last tokens; at the start, a whole source's head."""
        for source in self.hints:
            if not prefix:
                return source[:RUN]
            if prefix == source[: len(prefix)]:
                return source[len(prefix) : len(prefix) + RUN]
        for length in range(4, MIN_MATCH - 1, -1):
            tail = prefix[-length:]
            if len(tail) < length:
                continue
            for source in (*self.hints, prefix[:-1]):
                for start in range(len(source) - length, -1, -1):
                    if source[start : start + length] == tail and source[start + length :]:
                        return source[start + length : start + length + RUN]
        return ()


def _mark_expanded(place: TreeNode, run: Tokens) -> None:
    """A position with one legal token needs no draft step."""
    for token in run:
        place.expanded = True
        place = place.children[token]
        place.is_drawn = True
