"""What the edge has sent in one answer and would send again: hints whose outcome it does not know yet.

A link that loses a hint must not stop an answer whose cloud waits for one, so drafts are kept while a node of
theirs may still become true, and corrections until a commit shows that they have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.tree import SpeculationTree, chain_parents
from vlm_spec_decode.core.types import Correction, Draft, Hint, Tokens


@dataclass(slots=True)
class Pending:
    """Hints in the order in which they were sent, and the tree that says which of them still matter."""

    committed: Tokens = ()
    _tree: SpeculationTree = field(init=False)
    _sent: deque[Hint] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._tree = SpeculationTree(committed=list(self.committed))

    def add(self, hint: Hint) -> None:
        """Keep a hint that is being sent. A correction commits its token."""
        if isinstance(hint, Draft):
            self._tree.add(hint)
        else:
            self._sent = deque(h for h in self._sent if not isinstance(h, Correction))
            if hint.token >= 0:
                self._advance((hint.token,))
        self._sent.append(hint)

    def advance(self, tokens: Tokens) -> None:
        """A commit has come: forget what it has overtaken. It follows every correction that was sent."""
        if tokens:
            self.forget_corrections()
            self._advance(tokens)

    def forget_corrections(self) -> None:
        """Their tokens are known to the cloud, or travel with the next Open."""
        self._sent = deque(hint for hint in self._sent if isinstance(hint, Draft))

    def hints(self) -> Iterator[Hint]:
        """Return what to send again, drafts re-rooted at what is committed now."""
        for hint in self._sent:
            yield self._rerooted(hint) if isinstance(hint, Draft) else hint

    def _advance(self, tokens: Tokens) -> None:
        self._tree.advance(tokens)
        self._sent = deque(hint for hint in self._sent if not isinstance(hint, Draft) or self._is_live(hint))

    def _is_live(self, draft: Draft) -> bool:
        numbers = range(draft.first_node, draft.first_node + len(draft.tokens))
        return any(self._tree.resolve(number) in self._tree.nodes for number in numbers)

    def _rerooted(self, draft: Draft) -> Draft:
        """Cut the committed head off a chain: a cloud that has forgotten cannot place what hangs below it."""
        first, size = draft.first_node, len(draft.tokens)
        if draft.parents != chain_parents(first, size, draft.parents[0]):
            return draft
        cut = next((i for i in range(size) if self._tree.resolve(first + i) in self._tree.nodes), size)
        parent = draft.parents[cut] if cut < size else 0
        parent = parent if parent in self._tree.nodes else 0
        return replace(
            draft,
            base=len(self._tree.committed) if not parent else draft.base,
            first_node=first + cut,
            tokens=draft.tokens[cut:],
            parents=chain_parents(first + cut, size - cut, parent),
            weights=draft.weights[cut:],
            q=draft.q[cut:],
        )
