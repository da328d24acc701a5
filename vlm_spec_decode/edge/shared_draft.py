"""One draft model for several open answers: each step goes to those to whom it is worth most.

A draft model runs one step at a time, and a step over the rows of several answers takes hardly longer than
over those of one: the weights are read once. So the answers that want a step when the model gets free share
one, in the order of the committed tokens that it is expected to bring them:

    worth = α^(d + 1) + (1 if none of the answer's drafts is at the cloud, else 0)

d is how many tokens beyond the committed ones the step's shallowest row stands, and α how often a drafted
token of this answer was right, so α^(d + 1) is the probability that the drafted token is committed. An answer
without a draft at the cloud may be one whose next pass waits for just this draft, and every pass commits a
token of its own. A further row adds a share s to the time of the step: an answer with r rows joins n rows of
others while

    worth ≥ r · s · (sum of the others' worth) / (1 + s · (n - 1)),

which is what its time would bring in the step without it. Who does not join is in the next step; the deeper
a draft grows the less a further step is worth, so no answer stays behind for long. Equal ones go in the order
in which they were asked for.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.errors import OverBudget, VsdError
from vlm_spec_decode.core.ports import (
    NO_NODES,
    Clock,
    ExitHook,
    Model,
    ModelContext,
    OnExit,
    Rows,
    Scored,
    ScoreRequest,
    Scores,
    Tree,
    Verifier,
    WrappedContext,
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
from vlm_spec_decode.decoding.tree import SpeculationTree, positions_of
from vlm_spec_decode.edge.draft_budget import DraftBudget
from vlm_spec_decode.strategies.estimators import RunningMean

log = logging.getLogger(__name__)

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
    """A step that an answer wants, or, without a `request`, the model for itself."""

    worth: float
    order: int
    request: ScoreRequest | None = None
    result: Scored | None = None
    began_s: float = 0.0

    @property
    def num_rows(self) -> int:
        """Rows that the step is asked for."""
        request = self.request
        if request is None:
            return 0
        return 1 + len(request.tokens) if request.rows is None else len(request.rows)


class DraftArbiter:
    """Gives `model` to one step at a time. `clock` tells what steps take, `slope` what a row adds to one.

    All that the model does goes through here, so here it is drawn from `budget`; None: there is no limit.
    """

    def __init__(
        self,
        processes: Processes,
        clock: Clock,
        model: Model | None = None,
        slope: Callable[[], float] = lambda: 0.0,
        budget: DraftBudget | None = None,
    ) -> None:
        self.budget = budget
        self._processes = processes
        self._clock = clock
        self._model = model
        self._slope = slope
        self._order = itertools.count()
        self._wanted: list[_Turn] = []
        self._running: list[_Turn] = []
        self._ended: list[Callable[[], None]] = []

    @contextmanager
    def turn(self, worth: float) -> Iterator[None]:
        """Wait until the model is free and nobody waits to whom it is worth more; hold it meanwhile."""
        mine = _Turn(worth, next(self._order))
        try:
            self._processes.change(lambda: self._wanted.append(mine))
            self._processes.wait(lambda: self._take(mine))
            with self._drawn():
                yield
        finally:
            self._processes.change(lambda: self._give_back(mine))

    def step(
        self, worth: float, request: ScoreRequest, models: AbstractContextManager[object]
    ) -> tuple[Scores, float]:
        """Run a step, with those of others that wait; return what it says, and how long this answer waited.

        Raises what `ModelContext.choose` does.
        """
        mine, asked_s = _Turn(worth, next(self._order), request), self._clock.now()
        try:
            self._processes.change(lambda: self._wanted.append(mine))
            self._processes.wait(lambda: mine.result is not None or self._take(mine))
            if mine.result is None:
                with models, self._drawn():
                    self._run(mine)
        finally:
            self._processes.change(lambda: self._give_back(mine))
        if isinstance(mine.result, VsdError):
            raise mine.result
        assert mine.result is not None
        return mine.result, max(0.0, mine.began_s - asked_s)

    def close(self, close: Callable[[], None]) -> None:
        """Close a context when no step runs: now, or at the end of the step that does. It never waits.

        An answer that nobody holds is closed by whatever thread collects it, perhaps in its own step.
        """

        def close_or_leave() -> None:
            if self._running:
                self._ended.append(close)
            else:
                close()

        self._processes.change(close_or_leave)

    def _drawn(self) -> AbstractContextManager[None]:
        """Draw from the budget what goes on meanwhile."""
        return self.budget.step() if self.budget else nullcontext()

    def _run(self, mine: _Turn) -> None:
        """Run the steps of all that share this turn; if that fails, this one alone."""
        assert mine.request is not None
        for turn in self._running:
            turn.began_s = self._clock.now()
        others = [turn for turn in self._running if turn is not mine]
        if others and self._model:
            try:
                requests = [turn.request for turn in self._running if turn.request]
                scored = self._model.score_batch(requests)
            except Exception as error:  # noqa: BLE001 what it is shows in the step alone
                log.warning("a draft step for %d answers failed, each goes alone: %s", len(others) + 1, error)
            else:
                self._processes.change(lambda: self._hand_out(scored))
                return
        self._processes.change(lambda: self._go_without(mine))
        mine.result = mine.request.score_or_error()

    def _hand_out(self, scored: Seq[Scored]) -> None:
        for turn, result in zip(self._running, scored, strict=True):
            turn.result = result

    def _go_without(self, mine: _Turn) -> None:
        """Let the others of this turn have turns of their own."""
        self._wanted += [turn for turn in self._running if turn is not mine]
        self._running = [mine]

    def _take(self, mine: _Turn) -> bool:
        """Take the model if it is free and nobody waits to whom it is worth more, with who joins."""
        ranked = sorted(self._wanted, key=lambda turn: (-turn.worth, turn.order))
        if self._running or not ranked or ranked[0] is not mine:
            return False
        self._running = [mine, *self._joining(mine, ranked[1:])] if mine.request else [mine]
        self._wanted = [turn for turn in self._wanted if turn not in self._running]
        return True

    def _joining(self, first: _Turn, others: Seq[_Turn]) -> Iterator[_Turn]:
        """Yield those who share the step of `first`, most worth first."""
        total, rows, slope = first.worth, first.num_rows, self._slope()
        for turn in others:
            # What the time of its rows brings without it: r s · Σ worth / (1 + s (n - 1)).
            share = turn.num_rows * slope * total / (1 + slope * max(0, rows - 1))
            if turn.request and turn.worth >= share:
                yield turn
                total, rows = total + turn.worth, rows + turn.num_rows

    def _give_back(self, mine: _Turn) -> None:
        if self._running and self._running[0] is mine:
            # Interrupted in its step: who shared it wants another one.
            self._wanted += [turn for turn in self._running[1:] if turn.result is None]
            self._running = []
            while self._ended:
                self._ended.pop()()
        elif mine in self._wanted:
            self._wanted.remove(mine)  # interrupted while it waited
        elif mine in self._running:
            self._running.remove(mine)


@dataclass(slots=True)
class SharedDraft(WrappedContext):
    """One answer's context of a draft model that others use as well. `models` is held while it runs."""

    arbiter: DraftArbiter
    progress: DraftProgress
    models: AbstractContextManager[object]
    _waited_s: float = 0.0
    _spent_before: float | None = None
    """What drafting had taken when this answer's first step began."""

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

    @property
    def may_step(self) -> bool:
        """Whether the budget has room for a step."""
        budget = self.arbiter.budget
        return budget is None or budget.allows(has_begun=self._spent_before is not None)

    @property
    def waited_s(self) -> float:
        """For how long its steps have waited for the model."""
        return self._waited_s

    def prefill(self) -> None:
        """Fill the prompt."""
        self._begin_step()
        with self._turn(0.0):
            self.inner.prefill()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Score a step, in turn."""
        self._begin_step()
        with self._turn(self.progress.worth(len(prefix))):
            return self.inner.score(prefix, tokens, parents, on_exit=on_exit)

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Scores:
        """Run a step, in turn; it is worth what the shallowest row is that is asked for."""
        self._begin_step()
        positions = positions_of(tree[1], len(prefix))
        asked = positions if rows is None else [positions[row] for row in rows]
        worth = self.progress.worth(min(asked, default=len(prefix)))
        request = ScoreRequest(self.inner, prefix, *tree, on_exit, rows)
        scores, waited_s = self.arbiter.step(worth, request, self.models)
        self._waited_s += waited_s
        return scores

    def forget(self) -> None:
        """Free the cache."""
        with self._turn(math.inf):
            self.inner.forget()

    def close(self) -> None:
        """Free all that the answer holds."""
        budget, before = self.arbiter.budget, self._spent_before
        if budget and before is not None:
            budget.ended(budget.spent - before)
            self._spent_before = None

        def close() -> None:
            with self.models:
                self.inner.close()

        self.arbiter.close(close)

    def _begin_step(self) -> None:
        """Raises OverBudget if there is no room for a step."""
        budget = self.arbiter.budget
        if budget is None:
            return
        if not self.may_step:
            raise OverBudget("drafting may take no more now")
        if self._spent_before is None:
            self._spent_before = budget.spent

    @contextmanager
    def _turn(self, worth: float) -> Iterator[None]:
        with self.arbiter.turn(worth), self.models:
            yield


class NoDrafter(ModelContext):
    """The drafter of strategies that have none."""

    def prefill(self) -> None:
        """Do nothing."""

    def score(
        self,
        prefix: Tokens,  # noqa: ARG002
        tokens: Tokens = (),  # noqa: ARG002
        parents: Tokens = (),  # noqa: ARG002
        *,
        on_exit: ExitHook | None = None,  # noqa: ARG002
    ) -> Logits:
        """Raise RuntimeError: a strategy that drafts must be registered as one."""
        raise RuntimeError("this strategy does not draft")

    def forced(self, prefix: Tokens) -> Tokens:  # noqa: ARG002
        """Return (): forced tokens come with the commits."""
        return ()

    def close(self) -> None:
        """Do nothing."""


def step_ratio(drafter: Model | None, verifier: Verifier) -> float:
    """Return what a draft step takes over a step of the target, by the bytes that both read; 0: not known."""
    if drafter is None or not verifier.target_bytes:
        return 0.0
    return drafter.step_bytes / verifier.target_bytes
