"""The slot table: the position of each token in a session's KV cache, and which tokens attend to which.

Independent of tensors, models and prompts. A slot is (position, parent, token); slot 0 is the root
and stands for the whole prompt. Chain, tree, rollback, re-rooting and eviction are one operation, a
gather: `alive` lists the slots to keep, `gather` renumbers the table, and the caller applies the
same index to its tensors. Positions are depths below the prompt and never change, so rotary
embeddings of kept keys stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Index: TypeAlias = npt.NDArray[np.intp]
Visibility: TypeAlias = npt.NDArray[np.bool_]

ROOT = 0


class SlotTable:
    """A trie of tokens below the prompt, in the order in which its KV lies in the cache."""

    def __init__(self) -> None:
        self.parents = [-1]
        self.tokens = [-1]
        self.positions = [0]
        self._child: dict[tuple[int, int], int] = {}
        # _sees[slot, other]: `other` is `slot` itself or one of its ancestors; grown by doubling.
        self._sees: Visibility = np.zeros((32, 32), dtype=np.bool_)
        self._sees[ROOT, ROOT] = True

    def __len__(self) -> int:
        return len(self.parents)

    def descend(self, tokens: Seq[int], start: int = ROOT) -> tuple[int, int]:
        """Follow `tokens` from `start` as far as they are known; return (slot reached, tokens matched)."""
        slot = start
        for matched, token in enumerate(tokens):
            child = self._child.get((slot, token))
            if child is None:
                return slot, matched
            slot = child
        return slot, len(tokens)

    def path(self, slot: int) -> tuple[int, ...]:
        """Return the tokens from the prompt down to `slot`."""
        tokens = []
        while slot != ROOT:
            tokens.append(self.tokens[slot])
            slot = self.parents[slot]
        return tuple(reversed(tokens))

    def add(self, parent: int, token: int) -> int:
        """Return the slot of `token` below `parent`, a new one only if there is none yet."""
        known = self._child.get((parent, token))
        if known is not None:
            return known
        slot = len(self)
        if slot == len(self._sees):
            # Doubling: n slots cost O(n^2) in all, as the matrix itself does, and not O(n^3).
            self._sees = np.pad(self._sees, ((0, slot), (0, slot)))
        # sees(slot) = sees(parent) + {slot}: a token attends to its ancestors and to itself, not to siblings.
        self._sees[slot, :slot] = self._sees[parent, :slot]
        self._sees[slot, slot] = True
        self.parents.append(parent)
        self.tokens.append(token)
        self.positions.append(self.positions[parent] + 1)
        self._child[parent, token] = slot
        return slot

    def place(self, prefix: Seq[int], tokens: Seq[int] = (), parents: Seq[int] = ()) -> list[int]:
        """Return the slots of `prefix`'s end and of each node below it, adding those that are missing.

        `parents` counts as in `ModelContext.score`: 0 is the prefix, i the i-th node. Raises
        ValueError, and adds nothing, if it does not describe a tree in topological order.
        """
        if len(tokens) != len(parents) or any(not 0 <= parent <= i for i, parent in enumerate(parents)):
            raise ValueError(
                f"not a tree in topological order: parents {tuple(parents)} of {len(tokens)} nodes"
            )
        # What is known already keeps its slot, and with it its KV; only the rest is new.
        slot, matched = self.descend(prefix)
        for token in prefix[matched:]:
            slot = self.add(slot, token)
        rows = [slot]
        for token, parent in zip(tokens, parents, strict=True):
            rows.append(self.add(rows[parent], token))
        return rows

    def visible(self, first: int) -> Visibility:
        """Return [len - first, len]: what each slot from `first` on attends to, itself included."""
        return self._sees[first : len(self), : len(self)]

    def alive(self, slot: int, with_below: bool = True) -> Index:
        """Return, in order, the slots that matter when `slot` is the prefix: ancestors, itself, all below.

        Without `with_below` the prefix goes on from `slot` to tokens that have no slot yet, so that none of
        those below it matter.
        """
        size = len(self)
        # Row `slot` holds its ancestors and itself, column `slot` itself and its descendants. A slot that is
        # in neither lies on a branch that the committed prefix has left.
        above = self._sees[slot, :size]
        return np.flatnonzero(above | self._sees[:size, slot] if with_below else above)

    def gather(self, keep: Index) -> None:
        """Keep the slots `keep` (ascending, each with its parent) and renumber them 0, 1, …"""
        # -1 is the root's parent. `keep` is ascending and has every slot's parent, so that parents still come
        # before their children, as the cache needs it: a column is computed from columns to its left.
        renumbered = {int(old): new for new, old in enumerate(keep)} | {-1: -1}
        self.parents = [renumbered[self.parents[old]] for old in keep]
        self.tokens = [self.tokens[old] for old in keep]
        self.positions = [self.positions[old] for old in keep]
        kept = self._sees[np.ix_(keep, keep)]
        self._sees = np.zeros_like(self._sees)
        self._sees[: len(keep), : len(keep)] = kept
        pairs = zip(self.parents, self.tokens, strict=True)
        self._child = {pair: slot for slot, pair in enumerate(pairs) if slot != ROOT}


@dataclass(frozen=True, slots=True)
class AttentionSpan:
    """How much of what lies before it a row sees in the layers of one type.

    `window` None is all of it, W only what stands less than W positions before. With `image_blocks` the rows
    of one picture also see those of the same picture behind them.
    """

    window: int | None = None
    image_blocks: bool = False


Rows: TypeAlias = npt.NDArray[np.intp]
NO_ROWS: Rows = np.zeros(0, dtype=np.intp)


def sees_by_type(
    slots: SlotTable, first: int, prompt_len: int, image_rows: Rows, spans: Mapping[str, AttentionSpan]
) -> dict[str, Visibility | None]:
    """Return for each type of layers what the slots from `first` on see, [rows, columns].

    None where every row sees every column. `first` 0 is the pass that has the prompt's rows too, with those
    of its pictures in `image_rows` (ascending). Types that see the same share one array.
    """
    # Row i sees column j if j is i or one of its ancestors: this is all that makes a tree of a sequence
    # (tree attention, SpecInfer 2305.09781).
    plain = _ancestors(slots, first, prompt_len)
    # The window counts tokens of the row's own path: a node stands at (prompt's last position) + (its depth),
    # whatever its slot is. The prompt's first token is every row's ancestor, so it falls out first.
    deepest = prompt_len - 1 + max(slots.positions[first:])
    known: dict[tuple[int | None, bool], Visibility | None] = {(None, False): plain}
    found = {}
    for name, span in spans.items():
        window = span.window if span.window is not None and span.window <= deepest else None
        blocks = span.image_blocks and not first and len(image_rows) > 0
        key = (window, blocks)
        if key not in known:
            known[key] = _limited(plain, slots, first, prompt_len, window, image_rows if blocks else NO_ROWS)
        found[name] = known[key]
    return found


def _ancestors(slots: SlotTable, first: int, prompt_len: int) -> Visibility | None:
    nodes = slots.visible(max(first, 1))
    rows = len(nodes) if first else prompt_len + len(nodes)
    if nodes.all() and (first or rows == 1):  # one more token of a chain, most of the time
        return None
    sees = np.ones((rows, prompt_len - 1 + len(slots)), dtype=np.bool_)
    if not first:
        # The prompt itself is causal: row i sees columns 0 to i.
        sees[:prompt_len] = np.tri(prompt_len, sees.shape[1], dtype=np.bool_)
    sees[rows - len(nodes) :, prompt_len - 1 :] = nodes
    return sees


def _limited(
    plain: Visibility | None,
    slots: SlotTable,
    first: int,
    prompt_len: int,
    window: int | None,
    image_rows: Rows,
) -> Visibility:
    """Return `plain`, with the blocks of the pictures `image_rows` and within `window`."""
    columns = np.concatenate([np.arange(prompt_len - 1), prompt_len - 1 + np.asarray(slots.positions)])
    rows = columns[prompt_len - 1 + first :] if first else columns
    sees = np.ones((len(rows), len(columns)), dtype=np.bool_) if plain is None else plain.copy()
    # A picture is a run of image tokens; its rows see each other in both directions.
    for run in np.split(image_rows, np.flatnonzero(np.diff(image_rows) != 1) + 1):
        if len(run):
            sees[run[0] : run[-1] + 1, run[0] : run[-1] + 1] = True
    if window is not None:
        # i - W < j, both counted along the path.
        sees &= columns > rows[:, None] - window
    return sees
