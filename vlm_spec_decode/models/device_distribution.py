"""A row's distribution in whole parts, on the model's device. Knows tensors alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import Distribution
from vlm_spec_decode.core.types import Support


@dataclass(frozen=True)
class DeviceDistribution(Distribution):
    """`Distribution` over the parts [n] of the ids `ids` [n], ascending; None: of all ids in order."""

    parts: Tensor
    ids: Tensor | None

    @cached_property
    def _sums(self) -> Tensor:
        return self.parts.cumsum(0)

    @cached_property
    def unit(self) -> int:  # type: ignore[override]
        """What the parts sum to."""
        return int(self._sums[-1])

    @property
    def best(self) -> int:
        """The id with the most parts."""
        return self.top(1)[0][0]

    def part(self, token: int) -> int:
        """Return the parts of one id."""
        entry = self._entry(token)
        found = entry < len(self.parts) and (self.ids is None or int(self.ids[entry]) == token)
        return int(self.parts[entry]) if found else 0

    def below(self, token: int) -> int:
        """Return the parts of all ids below one."""
        entry = self._entry(token)
        return int(self._sums[entry - 1]) if entry else 0

    def at(self, ticket: int) -> int:
        """Return the id that a ticket falls on."""
        entry = int(torch.searchsorted(self._sums, ticket, right=True))
        return entry if self.ids is None else int(self.ids[entry])

    def support(self) -> Support:
        """Return all parts that are not 0."""
        entries = self.parts.nonzero()[:, 0]
        ids = entries if self.ids is None else self.ids[entries]
        return tuple(zip(ids.tolist(), self.parts[entries].tolist(), strict=True))

    @torch.inference_mode()
    def top(self, count: int) -> list[tuple[int, int]]:
        """Return the greatest parts."""
        least = int(torch.topk(self.parts, min(count, len(self.parts))).values[-1])
        entries = (self.parts >= max(1, least)).nonzero()[:, 0]
        parts = self.parts[entries].cpu().numpy()
        names = (entries if self.ids is None else self.ids[entries]).cpu().numpy()
        order = np.argsort(-parts, kind="stable")[:count]
        return [(int(names[i]), int(parts[i])) for i in order]

    def _entry(self, token: int) -> int:
        """Return where `token` stands, or would stand, among the ids."""
        return token if self.ids is None else int(torch.searchsorted(self.ids, token))
