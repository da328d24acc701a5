"""Models that take as long as a hardware profile says, by any clock.

By the wall clock a context sleeps for what is left of a step's time after the step itself, so that a laptop
behaves in time as that hardware does; by a virtual clock the step takes no time and all of it is charged.
A machine that is slower than the profile cannot be hidden: `Lateness` says so once. What passes take here,
without a profile, is measured by `pass_seconds`. Imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np

from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.images import rgb_image
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
    WrappedContext,
    WrappedModel,
)
from vlm_spec_decode.core.profiles import HardwareProfile
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.decoding.policy import DraftCosts

SLOWER = "this machine is slower than the hardware profile"
"""How the warning of a machine that cannot keep the pace begins."""

JUDGED_STEPS = 8
LATE_SHARE = 0.05
"""After so many steps, a machine is slower if its late seconds are more than this share of the profile's."""

TIMES = 3
"""How often a pass is run to be timed."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Lateness:
    """What steps took here beyond the profile, in seconds. `what` names them, such as "draft steps".

    The first one is left out: it loads what the others find loaded.
    """

    what: str
    profile: str
    steps: int = 0
    due_s: float = 0.0
    late_s: float = 0.0
    _is_warm: bool = False
    _is_told: bool = False

    @property
    def ratio(self) -> float:
        """How long all steps took here over what the profile says; 1.0 for a machine that keeps the pace."""
        return 1 + self.late_s / self.due_s if self.due_s else 1.0

    def note(self, took_s: float, due_s: float) -> None:
        """Count a step; warn the first time that this machine turns out to be slower."""
        if not self._is_warm:
            self._is_warm = True
            return
        self.steps += 1
        self.due_s += due_s
        self.late_s += max(0.0, took_s - due_s)
        if self.steps >= JUDGED_STEPS and self.late_s > LATE_SHARE * self.due_s and not self._is_told:
            self._is_told = True
            log.warning("%s %s: %s take %.2f times as long", SLOWER, self.profile, self.what, self.ratio)


@dataclass(slots=True)
class _Step:
    """A step under way that is to take `due_s` in all. `spent_s` was worked for it before it began."""

    clock: Clock
    lateness: Lateness
    due_s: float
    spent_s: float = 0.0
    _began_s: float = field(init=False)
    _slept_s: float = 0.0

    def __post_init__(self) -> None:
        self._began_s = self.clock.now() - self.spent_s

    def reach(self, share: float) -> None:
        """Sleep until `share` of the step's time is over; at once if it is already."""
        rest_s = self._began_s + share * self.due_s - self.clock.now()
        if rest_s > 0:
            self._slept_s += rest_s
            self.clock.sleep(rest_s)

    def end(self) -> None:
        """Count what the step took here, then sleep for the rest."""
        self.lateness.note(self.clock.now() - self._began_s - self._slept_s, self.due_s)
        self.reach(1.0)


@dataclass(slots=True)
class CachedRows:
    """The rows of one answer that are in a KV cache, as the paths that lead to them."""

    known: set[Tokens] = field(default_factory=set)

    def add_new(self, prefix: Tokens, tokens: Tokens, parents: Tokens) -> int:
        """Return how many rows a `score` of this would compute, and count them as computed."""
        paths = [prefix]
        for token, parent in zip(tokens, parents, strict=True):
            paths.append((*paths[parent], token))
        new_paths = {*paths, *(prefix[:depth] for depth in range(len(prefix)))} - self.known
        self.known |= new_paths
        return len(new_paths)


@dataclass(slots=True)
class ChargedContext(WrappedContext):
    """A context each step of which takes `duration_s(new rows, whether it is the first)` seconds of `clock`.

    A prefill is part of the first step.
    """

    clock: Clock
    duration_s: Callable[[int, bool], float]
    lateness: Lateness = field(default_factory=lambda: Lateness("steps", ""))
    rows: CachedRows = field(default_factory=CachedRows)
    _spent_s: float = 0.0

    def prefill(self) -> None:
        """Fill the prompt; charged with the first step."""
        began_s = self.clock.now()
        self.inner.prefill()
        self._spent_s += self.clock.now() - began_s

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Score with `inner`, and let the step take its time."""
        step = self._step(prefix, (tokens, parents))
        logits = self.inner.score(prefix, tokens, parents, on_exit=on_exit)
        step.end()
        return logits

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Scores:
        """Choose with `inner`, and let the step take its time."""
        step = self._step(prefix, tree)
        scores = self.inner.choose(prefix, tree, on_exit, rows)
        step.end()
        return scores

    def forget(self) -> None:
        """Free the cache of `inner`; the next step computes all rows again."""
        self.inner.forget()
        self.rows = CachedRows()

    def _step(self, prefix: Tokens, tree: Tree) -> _Step:
        is_first = not self.rows.known
        due_s = self.duration_s(self.rows.add_new(prefix, *tree), is_first)
        return _Step(self.clock, self.lateness, due_s, self.take_spent_s())

    def take_spent_s(self) -> float:
        """Return the seconds of a prefill that no step has been charged with yet, once."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s


@dataclass(frozen=True, slots=True)
class PacedModel(WrappedModel):
    """A draft model whose contexts take `duration_s(new rows, whether it is the first)` for each step."""

    clock: Clock
    duration_s: Callable[[int, bool], float]
    lateness: Lateness

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer."""
        return ChargedContext(self.inner.open(observation), self.clock, self.duration_s, self.lateness)

    def score_batch(self, requests: Seq[ScoreRequest]) -> list[Scored]:
        """Score many contexts in one step, which takes the time of all their new rows."""
        contexts, rows, spent_s, is_first = list[ChargedContext](), 0, 0.0, False
        for request in requests:
            context = request.context
            assert isinstance(context, ChargedContext)
            contexts.append(context)
            is_first |= not context.rows.known
            rows += context.rows.add_new(request.prefix, request.tokens, request.parents)
            spent_s += context.take_spent_s()
        step = _Step(self.clock, self.lateness, self.duration_s(rows, is_first), spent_s)
        scored = self.inner.score_batch(
            [replace(request, context=each.inner) for request, each in zip(requests, contexts, strict=True)]
        )
        step.end()
        return scored


def paced_draft(draft: Model, hardware: HardwareProfile, clock: Clock) -> PacedModel:
    """Return the draft on the edge of a profile: each step, and each further row of a batch."""
    return PacedModel(draft, clock, hardware.draft_s, Lateness("draft steps", hardware.name))


def paced_copy(draft: Model, hardware: HardwareProfile, clock: Clock) -> PacedModel:
    """Return the copy of the draft beside the target of a profile; a prompt is not charged."""

    def duration_s(rows: int, is_first: bool) -> float:  # noqa: ARG001
        return hardware.cloud_draft_s(rows)

    return PacedModel(draft, clock, duration_s, Lateness("steps of the copy", hardware.name))


def profile_costs(hardware: HardwareProfile) -> DraftCosts:
    """Return what a profile says that one step takes in its cloud."""
    return DraftCosts(hardware.cloud_draft_s(1), hardware.pass_s(0), hardware.pass_s(1))


@dataclass(slots=True)
class _PassContext(WrappedContext):
    """One answer at a paced target. `is_filled`: its prompt is in the cache."""

    model: PacedTarget
    is_filled: bool = False

    def prefill(self) -> None:
        """Fill the prompt, unless it is filled: a pass of its own."""
        if not self.is_filled:
            step = self.model.begin([self], 0, has_exits=False)
            self.inner.prefill()
            self.is_filled = True
            step.end()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Score with `inner` in a pass that takes its time, exits on the way included."""
        step = self.model.begin([self], len(tokens), has_exits=on_exit is not None)
        logits = self.inner.score(prefix, tokens, parents, on_exit=self.model.timed(on_exit, step))
        self.is_filled = True
        step.end()
        return logits

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Scores:
        """Choose with `inner` in a pass that takes its time, exits on the way included."""
        step = self.model.begin([self], len(tree[0]), has_exits=on_exit is not None)
        scores = self.inner.choose(prefix, tree, self.model.timed(on_exit, step), rows)
        self.is_filled = True
        step.end()
        return scores

    def forget(self) -> None:
        """Free the cache of `inner`; the next pass fills the prompt again."""
        self.inner.forget()
        self.is_filled = False


@dataclass(frozen=True, slots=True)
class PacedTarget(WrappedModel):
    """A target whose passes take as long as a profile says, and say at each exit's depth what it says.

    A profile times passes of one answer. A pass over several is charged as one pass over all their nodes and
    one more row for each further answer, with a prompt to fill if any of them has one: this is what shared
    weights cost where memory is the bound, and it leaves out the arithmetic of several prompts.
    """

    hardware: HardwareProfile
    clock: Clock
    lateness: Lateness

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer. Raises ImageError if the image cannot be decoded."""
        return _PassContext(self.inner.open(observation), self)

    def score_batch(self, requests: Seq[ScoreRequest]) -> list[Scored]:
        """Score many contexts in one pass of the inner model, which takes its time."""
        contexts = [_own(request) for request in requests]
        has_exits = any(request.on_exit for request in requests)
        nodes = sum(len(request.tokens) for request in requests)
        step = self.begin(contexts, nodes, has_exits=has_exits)
        scored = self.inner.score_batch(
            [
                replace(request, context=context.inner, on_exit=self.timed(request.on_exit, step))
                for request, context in zip(requests, contexts, strict=True)
            ]
        )
        for context, found in zip(contexts, scored, strict=True):
            context.is_filled = context.is_filled or not isinstance(found, VsdError)
        step.end()
        return scored

    def begin(self, contexts: Seq[_PassContext], nodes: int, *, has_exits: bool) -> _Step:
        """Begin a pass over `nodes` drafted nodes of these answers in all."""
        fills = any(not context.is_filled for context in contexts)
        exits = len(self.card.exit_layers) if has_exits else 0
        rows = nodes + max(0, len(contexts) - 1)
        return _Step(self.clock, self.lateness, self.hardware.pass_s(rows, fills, exits))

    def timed(self, on_exit: OnExit, step: _Step) -> OnExit:
        """Return a listener that hears each exit when a pass of the profile would have come to its depth."""
        if on_exit is None:
            return None
        layers = self.card.num_layers

        def hook(exit_layer: int, scores: Scores) -> None:
            step.reach(exit_layer / layers)
            on_exit(exit_layer, scores)

        return hook


def paced_target(target: Model, hardware: HardwareProfile, clock: Clock) -> PacedTarget:
    """Return the target in the cloud of a profile."""
    return PacedTarget(target, hardware, clock, Lateness("passes", hardware.name))


def _own(request: ScoreRequest) -> _PassContext:
    assert isinstance(request.context, _PassContext)
    return request.context


def pass_seconds(model: Model, clock: Clock, *sizes: int) -> tuple[float, ...]:
    """Return the seconds of a pass after a short prompt, over each of `sizes` drafted tokens; 0: of a step.

    The shortest of `TIMES` each: what else the machine does only adds.
    """
    pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
    context = model.open(Observation(rgb_image(pixels), "go"))
    context.prefill()
    times: list[list[float]] = [[] for _ in sizes]
    prefix = Tokens()
    for _ in range(TIMES):
        for size, found in zip(sizes, times, strict=True):
            prefix += (0,)
            nodes = tuple(range(size))
            started_s = clock.now()
            scores = context.choose(prefix, (nodes, nodes))
            # An engine that chooses by itself runs its pass when it is asked.
            as_choices(scores).pick((0,), (len(prefix),), SamplingParams())
            found.append(clock.now() - started_s)
    context.close()
    return tuple(map(min, times))
