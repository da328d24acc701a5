"""One draft model for several open answers: each step goes to the answer to which it is worth most.

A draft model runs one step at a time. Where several answers want one at the same time, the step goes to the
largest expected number of committed tokens that it brings:

    worth = α^(d + 1) + (1 if none of the answer's drafts is at the cloud, else 0)

d is how many tokens beyond the committed ones the step's row stands, and α how often a drafted token of this
answer was right, so α^(d + 1) is the probability that the drafted token is committed. An answer without a
draft at the cloud may be one whose next pass waits for just this draft, and every pass commits a token of its
own. Steps take equally long, so the worth per step is the worth per second. The deeper a draft grows the less
a further step is worth: no answer stays behind for long. Equal ones go in the order in which they were asked
for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.ports import (
    NO_NODES,
    ExitHook,
    Model,
    OnExit,
    Rows,
    Scores,
    Tree,
)
from vlm_spec_decode.core.processes import Processes
from vlm_spec_decode.core.trace import Tracer
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    Correction,
    DraftMessage,
    Event,
    Hint,
    Observation,
    Tokens,
)
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.decoding.verify import positions_of
from vlm_spec_decode.models.paced import WrappedContext
from vlm_spec_decode.strategies.estimators import RunningMean

PRIOR_AGREEMENT = 0.7
"""α of an answer of which nothing is known yet."""


@dataclass(slots=True)
class DraftProgress(Tracer):
    """How far one answer is, for the worth of its next draft step.

    `tree` has the committed tokens and those of its sent drafts that may still be right; `agreement` is α.
    """

    tree: SpeculationTree = field(default_factory=SpeculationTree)
    agreement: RunningMean = field(default_factory=lambda: RunningMean(PRIOR_AGREEMENT, rate=0.1, trust=4))

    def worth(self, position: int) -> float:
        """Return the expected committed tokens of a step whose row stands after `position` tokens."""
        depth = max(0, position - len(self.tree.committed))
        return float(self.agreement.value ** (depth + 1)) + (0.0 if self.tree.nodes else 1.0)

    def opened(self, request: AnswerRequest) -> None:
        """Begin, or begin again after the committed tokens."""
        self.tree = SpeculationTree(committed=list(request.committed))
        if request.draft:
            self.tree.add(request.draft)

    def sent(self, message: Hint) -> None:
        """A draft is at the cloud, or a token was drawn here."""
        if isinstance(message, DraftMessage):
            self.tree.add(message)
        elif isinstance(message, Correction):
            self.tree.advance((message.token,))

    def received(self, event: Event) -> None:
        """A commit was received: it says of each drafted token in its place whether it was right."""
        for token in event.tokens if isinstance(event, Commit) else ():
            was_drafted = bool(self.tree.below(0))
            is_right = bool(self.tree.advance((token,)))
            if was_drafted:
                self.agreement.learn(float(is_right))


@dataclass(slots=True, eq=False)
class _Turn:
    """A step that somebody wants to run."""

    worth: float
    order: int


class DraftArbiter:
    """Gives the draft model to one answer at a time."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._order = itertools.count()
        self._wanted: list[_Turn] = []
        self._owner: _Turn | None = None

    @contextmanager
    def turn(self, worth: float) -> Iterator[None]:
        """Wait until the model is free and nobody waits to whom it is worth more; hold it meanwhile."""
        mine = _Turn(worth, next(self._order))
        try:
            self._processes.change(lambda: self._wanted.append(mine))
            self._processes.wait(lambda: self._take(mine))
            yield
        finally:
            self._processes.change(lambda: self._give_back(mine))

    def _take(self, mine: _Turn) -> bool:
        best = max(self._wanted, key=lambda turn: (turn.worth, -turn.order), default=mine)
        if self._owner is not None or best is not mine:
            return False
        self._wanted.remove(mine)
        self._owner = mine
        return True

    def _give_back(self, mine: _Turn) -> None:
        if self._owner is mine:
            self._owner = None
        elif mine in self._wanted:
            self._wanted.remove(mine)  # interrupted while it waited


@dataclass(slots=True)
class SharedDraft(WrappedContext):
    """One answer's context of a draft model that others use as well. `models` is held while it runs."""

    arbiter: DraftArbiter
    progress: DraftProgress
    models: AbstractContextManager[object]

    @classmethod
    def open(
        cls,
        model: Model,
        observation: Observation,
        arbiter: DraftArbiter,
        progress: DraftProgress,
        models: AbstractContextManager[object],
    ) -> SharedDraft:
        """Open an answer at the draft model. Raises ImageError."""
        with arbiter.turn(progress.worth(0)), models:
            return cls(model.open(observation), arbiter, progress, models)

    def prefill(self) -> None:
        """Fill the prompt."""
        with self._turn(0.0):
            self.inner.prefill()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Score a step, in turn."""
        with self._turn(self.progress.worth(len(prefix))):
            return self.inner.score(prefix, tokens, parents, on_exit=on_exit)

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Scores:
        """Run a step, in turn; it is worth what the shallowest row is that is asked for."""
        positions = positions_of(tree[1], len(prefix))
        asked = positions if rows is None else [positions[row] for row in rows]
        with self._turn(self.progress.worth(min(asked, default=len(prefix)))):
            return self.inner.choose(prefix, tree, on_exit, rows)

    def forget(self) -> None:
        """Free the cache."""
        with self._turn(math.inf):
            self.inner.forget()

    def close(self) -> None:
        """Free all that the answer holds."""
        with self._turn(math.inf):
            self.inner.close()

    @contextmanager
    def _turn(self, worth: float) -> Iterator[None]:
        with self.arbiter.turn(worth), self.models:
            yield
