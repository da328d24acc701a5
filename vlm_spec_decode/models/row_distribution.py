"""A row's distribution in whole parts, of the few ids that have any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vlm_spec_decode.core.choices import Distribution, Ids
from vlm_spec_decode.core.types import Support


@dataclass(frozen=True)
class RowDistribution(Distribution):
    """`Distribution` over the parts [n] of the ids `ids` [n], ascending; None: of all ids in order."""

    parts: Ids
    ids: Ids | None

    @cached_property
    def _sums(self) -> Ids:
        return self.parts.cumsum()

    @cached_property
    def unit(self) -> int:  # type: ignore[override]
        """What the parts sum to."""
        return int(self._sums[-1])

    @property
    def best(self) -> int:
        """The id with the most parts."""
        return self._id(int(self.parts.argmax()))

    def part(self, token: int) -> int:
        """Return the parts of one id."""
        entry = self._entry(token)
        found = entry < len(self.parts) and self._id(entry) == token
        return int(self.parts[entry]) if found else 0

    def below(self, token: int) -> int:
        """Return the parts of all ids below one."""
        entry = self._entry(token)
        return int(self._sums[entry - 1]) if entry else 0

    def at(self, ticket: int) -> int:
        """Return the id that a ticket falls on."""
        return self._id(int(np.searchsorted(self._sums, ticket, side="right")))

    def support(self) -> Support:
        """Return all parts that are not 0."""
        entries = np.flatnonzero(self.parts)
        ids = entries if self.ids is None else self.ids[entries]
        return tuple(zip(ids.tolist(), self.parts[entries].tolist(), strict=True))

    def top(self, count: int) -> list[tuple[int, int]]:
        """Return the greatest parts."""
        place = max(0, len(self.parts) - count)
        entries = np.flatnonzero(self.parts >= max(1, np.partition(self.parts, place)[place]))
        kept = entries[np.argsort(-self.parts[entries], kind="stable")[:count]]
        return [(self._id(entry), int(self.parts[entry])) for entry in kept.tolist()]

    def _id(self, entry: int) -> int:
        return entry if self.ids is None else int(self.ids[entry])

    def _entry(self, token: int) -> int:
        """Return where `token` stands, or would stand, among the ids."""
        return token if self.ids is None else int(np.searchsorted(self.ids, token))
