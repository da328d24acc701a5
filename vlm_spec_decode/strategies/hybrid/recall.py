"""`hybrid`'s free drafts in the cloud: what earlier answers say, where the edge's draft has not spoken.

The edge's draft has seen the frame, earlier answers have not. So a token that is recalled has what the
drafted ones leave of the probability, and what is recalled of a drafted token goes on below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.decoding.free_drafts import FreeDraft, FreeDrafts
from vlm_spec_decode.decoding.tree import SpeculationTree

MOST, LEAST = 16, 0.05
"""Nodes of free drafts in a pass, and how likely each must be to be reached."""

NEW = -1
"""In place of the edge's number of a node that the edge has not drafted."""


@dataclass(slots=True)
class Recall:
    """One answer's free drafts. `memory` has the answers before it; None: there are none to recall."""

    memory: FreeDrafts | None = None
    instruction: str = ""
    draft: FreeDraft = field(default_factory=FreeDraft)

    def look(self, tree: SpeculationTree, weights: dict[int, float], floor: float) -> float:
        """Recall what may follow the committed tokens; return how many tokens more a pass then accepts.

        `weights` are the probabilities of the edge's nodes that the pass holds, by number, 1 at 0. New nodes
        that are reached less often than `floor` are left out, with what is below them.
        """
        self.draft = FreeDraft()
        if self.memory is None:
            return 0.0
        found = self.memory.recall(self.instruction, tuple(tree.committed), most=MOST, floor=LEAST)
        places, reached, kept, gain = [0], [1.0], list[int](), 0.0
        for node, (token, parent, chance) in enumerate(found.rows(), 1):
            drafted = self._drafted(tree, places[parent], weights)
            place = drafted.get(token, NEW)
            if place == NEW:
                # P(x) = P(recalled x) (1 - sum of P(drafted)): the edge's nodes after the same token.
                taken = sum(weights[number] for number in drafted.values()) / max(reached[parent], 1e-9)
                reached.append(reached[parent] * chance * max(0.0, 1 - taken))
            else:
                reached.append(weights[place])
            places.append(place)
            if (parent == 0 or parent in kept) and (place != NEW or reached[node] >= floor):
                kept.append(node)
                gain += reached[node] * (place == NEW)
        self.draft = found.only(kept, reached)
        return gain

    @staticmethod
    def _drafted(tree: SpeculationTree, place: int, weights: dict[int, float]) -> dict[int, int]:
        """Return the numbers of the edge's nodes after a place that the pass holds, by token."""
        below = tree.below(place) if place != NEW else ()
        return {tree.nodes[number].token: number for number in below if number in weights}
