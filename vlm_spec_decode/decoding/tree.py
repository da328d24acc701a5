"""The speculation tree: every drafted node that may still become true.

Both ends hold one. The edge numbers nodes 1, 2, … once per answer; 0 is the committed prefix. A commit
re-roots the tree: what hangs below the committed tokens survives, the rest is dead. Late, repeated and
reordered drafts do no harm: a node whose position has meanwhile been committed is true or dead, and
both are known here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import DraftMessage, Tokens

WEIGHT_STEP = 1 / 16
"""Nats per unit of a quantised weight: one byte reaches down to e^-15.9."""


def quantise(log_prob: float) -> int:
    """Return a node's weight byte, 0 (certain) to 255 (e^-15.9 or less likely)."""
    return min(255, max(0, round(-log_prob / WEIGHT_STEP)))


def positions_of(parents: Tokens, start: int) -> list[int]:
    """Return the position in the answer of what follows each row [1 + n]: a node at depth d has start + d."""
    positions = [start]
    for parent in parents:
        positions.append(positions[parent] + 1)
    return positions


def chain_parents(first_node: int, length: int, parent: int = 0) -> Tokens:
    """Return the parents of `length` nodes that hang one below the other, the first on `parent`."""
    return (parent, *range(first_node, first_node + length - 1)) if length else ()


@dataclass(slots=True)
class Node:
    """A live node: its token, its position in the answer and its children by token."""

    token: int
    position: int
    parent: int
    weight: int = 0
    children: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subtree:
    """Live nodes in the form that `ModelContext.score` takes; `numbers[i]` names the i-th row + 1."""

    numbers: Tokens = ()
    tokens: Tokens = ()
    parents: Tokens = ()

    def named(self, row: int) -> tuple[int, int | None]:
        """Return the deepest node at or above `row` that the edge knows, and the token below it.

        The cloud's own nodes have numbers below 0, which mean nothing to the edge. Without such a node
        on the way the token is None.
        """
        below: int | None = None
        while row and self.numbers[row - 1] < 0:
            below = self.tokens[row - 1]
            row = self.parents[row - 1]
        return (self.numbers[row - 1] if row else 0), below

    def grown(self, tokens: Tokens, parents: Tokens) -> Subtree:
        """Return this with nodes of the cloud's own below it; `parents` are rows."""
        first = min((0, *self.numbers)) - 1
        own = tuple(range(first, first - len(tokens), -1))
        return Subtree(self.numbers + own, self.tokens + tokens, self.parents + parents)

    def chain(self) -> Subtree:
        """Return one path from the root: of siblings the one drafted first, which its drafter liked best."""
        kept, row = list[int](), 0
        for below, parent in enumerate(self.parents, start=1):
            if parent == row:
                kept.append(below)
                row = below
        chosen = [row - 1 for row in kept]
        numbers, tokens = (tuple(each[i] for i in chosen) for each in (self.numbers, self.tokens))
        return Subtree(numbers, tokens, tuple(range(len(kept))))


@dataclass(slots=True)
class SpeculationTree:
    """Live nodes below the committed tokens, and what became of the others.

    `unknown` counts nodes dropped because their parent was never seen, `late` those that came after
    another token had been committed in their place.
    """

    committed: list[int] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=dict)
    unknown: int = 0
    late: int = 0
    _top: dict[int, int] = field(default_factory=dict)
    _anchors: dict[int, int] = field(default_factory=dict)
    _aliases: dict[int, int] = field(default_factory=dict)
    _dead: set[int] = field(default_factory=set)

    def add(self, draft: DraftMessage) -> Tokens:
        """Add a draft's nodes and return the numbers that are alive now and were not before."""
        weights = draft.weights or (0,) * len(draft.tokens)
        rows = zip(draft.tokens, draft.parents, weights, strict=True)
        numbered = enumerate(rows, start=draft.first_node)
        return tuple(n for n, row in numbered if not self.knows(n) and self._attach(n, draft.base, *row))

    def knows(self, number: int) -> bool:
        """Tell whether this node has been seen, alive or not."""
        return (
            number in self.nodes or number in self._anchors or number in self._aliases or number in self._dead
        )

    @property
    def confirmed(self) -> frozenset[int]:
        """Numbers of the nodes that have been committed."""
        return frozenset(self._anchors)

    def resolve(self, number: int) -> int:
        """Return the live node that stands for `number` (the same token drafted twice is one node)."""
        return self._aliases.get(number, number)

    def advance(self, tokens: Iterable[int]) -> int:
        """Commit `tokens`; return the deepest node that they confirm, 0 if none."""
        deepest = 0
        for token in tokens:
            number = self._top.get(token, 0)
            # Another token has been committed in their place: what hangs below them can never become true.
            for sibling in self._top.values():
                if sibling != number:
                    self._kill(sibling)
            self._top = {}
            if number:
                self._top = self.nodes.pop(number).children
                for child in self._top.values():
                    self.nodes[child].parent = 0
                # A confirmed node keeps its position: drafts that are still on the way may hang below it.
                self._anchors[number] = len(self.committed)
                deepest = number
            self.committed.append(token)
        return deepest

    def below(self, number: int) -> Tokens:
        """Return the live children of a live node, or of the committed prefix (0)."""
        return tuple((self.nodes[number].children if number else self._top).values())

    def live(self) -> Tokens:
        """Return the numbers of all live nodes, parents before children."""
        return tuple(sorted(self.nodes, key=lambda number: (self.nodes[number].position, number)))

    def subtree(self, numbers: Iterable[int]) -> Subtree:
        """Return the given live nodes, which must include their ancestors, ready for one pass."""
        chosen = tuple(numbers)
        row = {number: i for i, number in enumerate(chosen, start=1)} | {0: 0}
        nodes = [self.nodes[number] for number in chosen]
        return Subtree(chosen, tuple(n.token for n in nodes), tuple(row[n.parent] for n in nodes))

    def _attach(self, number: int, base: int, token: int, parent: int, weight: int) -> bool:
        parent = self.resolve(parent)
        position = self._position_below(parent, base)
        if position is None:
            self.late += parent in self._dead
            self.unknown += parent not in self._dead
            return False
        # The draft was under way when its position was committed: it is true or dead, and its children
        # follow.
        if position < len(self.committed):
            return self._confirm_or_bury(number, position, token)
        live_parent = self.nodes.get(parent)
        siblings = live_parent.children if live_parent else self._top
        if token in siblings:
            # The same token drafted twice is one node; children of either number hang below the first.
            self._aliases[number] = siblings[token]
            return False
        siblings[token] = number
        self.nodes[number] = Node(token, position, parent if live_parent else 0, weight)
        return True

    def _position_below(self, parent: int, base: int) -> int | None:
        if parent == 0:
            return base if base <= len(self.committed) else None
        if parent in self.nodes:
            return self.nodes[parent].position + 1
        return self._anchors[parent] + 1 if parent in self._anchors else None

    def _confirm_or_bury(self, number: int, position: int, token: int) -> bool:
        if self.committed[position] == token:
            self._anchors[number] = position
        else:
            self._dead.add(number)
            self.late += 1
        return False

    def _kill(self, number: int) -> None:
        doomed = [number]
        while doomed:
            current = doomed.pop()
            self._dead.add(current)
            doomed.extend(self.nodes.pop(current).children.values())
