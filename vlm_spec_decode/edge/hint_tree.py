"""What may be said of a frame, as a tree of tokens: where a distance may be another one, it branches.

An answer to an earlier frame holds for a later one but for its numbers: the body has walked since. The words
around them stay, so each number that may stand there is a branch, with the rest of the answer below it, and
one pass verifies them all. Which branches a pass holds is decided by what they are expected to bring: here
each node gets its probability, from how often such hints have held so far.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import DraftMessage, Tokens
from vlm_spec_decode.decoding.tree import quantise
from vlm_spec_decode.strategies.estimators import RunningMean

RANKS = (0.45, 0.2, 0.12, 0.06)
"""How often the first, second, … candidate for a number is said, before it is known."""


def number_ranks() -> tuple[RunningMean, ...]:
    """Return the estimates of how often each candidate for a number is said."""
    return tuple(RunningMean(prior, rate=0.02, trust=10) for prior in RANKS)


@dataclass(slots=True, eq=False)
class HintNode:
    """A token after its parent. `chance` is its probability there by who drafted it.

    `ranks` are the candidates for a number, numbered from the likeliest, that go on with this token; () for
    tokens of no such number. Where a number is one token these are single; where it is spelled digit by digit
    several may begin alike, and the token behind it belongs to those that end there.
    """

    token: int
    chance: float = 1.0
    ranks: tuple[int, ...] = ()
    children: list[HintNode] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HintTree:
    """The tokens that may come first, each with what may follow it; the likeliest child stands first."""

    top: tuple[HintNode, ...] = ()

    @classmethod
    def chain(cls, tokens: Tokens) -> HintTree:
        """Return the tree of one answer."""
        below: list[HintNode] = []
        for token in reversed(tokens):
            below = [HintNode(token, children=below)]
        return cls(tuple(below))

    @property
    def best(self) -> Tokens:
        """The likeliest answer, its first choice everywhere."""
        tokens, below = list[int](), self.top
        while below:
            tokens.append(below[0].token)
            below = tuple(below[0].children)
        return tuple(tokens)

    def holds(self, tokens: Tokens) -> bool:
        """Whether `tokens` are the beginning of one of its answers."""
        return sum(node is not None for _, node in self.along(tokens)) == len(tokens)

    def along(self, tokens: Tokens) -> Iterator[tuple[Sequence[HintNode], HintNode | None]]:
        """Yield for each token of an answer what might have come there, and which of it came, if any did.

        Ends where nothing is known any more.
        """
        below: Sequence[HintNode] = self.top
        for token in tokens:
            if not below:
                return
            found = next((node for node in below if node.token == token), None)
            yield below, found
            if found is None:
                return
            below = found.children

    def weighed(self, stay: float, ranks: Sequence[RunningMean], floor: float) -> WeighedHint:
        """Return its nodes that are likelier than `floor`, likeliest first.

        A word is said with the probability that its draft gave it if the answer stays with the hint there,
        which it does with the probability `stay`. A number is said as often as candidates of its rank are.
        """
        found = WeighedHint()
        first = [_chance(child, (), stay, ranks) for child in self.top]
        heap = [
            (-chance, 0, n, child, chance)
            for n, (child, chance) in enumerate(zip(self.top, first, strict=True))
        ]
        order = len(heap)
        heapq.heapify(heap)
        while heap and -heap[0][0] >= floor:
            negative, parent, _, node, chance = heapq.heappop(heap)
            number = found.add(node.token, parent, chance, -negative)
            for child in node.children:
                chance = _chance(child, node.ranks, stay, ranks)
                heapq.heappush(heap, (negative * chance, number, order, child, chance))
                order += 1
        return found


def _chance(node: HintNode, before: tuple[int, ...], stay: float, ranks: Sequence[RunningMean]) -> float:
    """Return P(node | its parent), whose candidates are `before`."""
    if not node.ranks:
        return node.chance * stay

    def together(chosen: tuple[int, ...]) -> float:
        return sum(ranks[rank].value for rank in chosen if rank < len(ranks))

    # Within a number: of the candidates that have begun as this one has, how many go on with this token.
    # P(token | so far) = sum of P(c), c in node / sum of P(c), c in parent.
    share = together(node.ranks)
    return share / max(together(before), 1e-9) if set(node.ranks) <= set(before) else share


@dataclass(slots=True)
class WeighedHint:
    """A hint's nodes, numbered from 1, parents first; `expected` is how many of them a pass accepts."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    expected: float = 0.0

    def add(self, token: int, parent: int, chance: float, reached: float) -> int:
        """Add a node and return its number; it is accepted with probability `reached`."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(chance)
        self.expected += reached
        return len(self.tokens)

    def message(self, answer: int) -> DraftMessage:
        """Return it as the first nodes of an answer."""
        weights = tuple(quantise(math.log(max(1e-9, chance))) for chance in self.chances)
        return DraftMessage(answer, 0, 0, 1, tuple(self.tokens), tuple(self.parents), weights)
