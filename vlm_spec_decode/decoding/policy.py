"""The contract of a strategy's cloud half: what the next pass of the target holds.

A policy belongs to one answer. The session (`decoding.session`) asks it for every pass and tells it what came
of it. All calls come from one thread except `extend`, which runs on the thread of the pass; `received` may be
called meanwhile, the others are not. Only `next_pass` must be written. The defaults are those of a policy
that neither waits, nor drafts, nor uses early exits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from vlm_spec_decode.core.ports import Clock, ModelContext, Scores, Tree
from vlm_spec_decode.core.types import AnswerRequest, Commit, DraftMessage, EarlyExitVerdict, Support, Tokens
from vlm_spec_decode.decoding.free_drafts import FreeDraft, FreeDrafts
from vlm_spec_decode.decoding.price import Price
from vlm_spec_decode.decoding.tree import SpeculationTree, Subtree


@dataclass(frozen=True, slots=True)
class PassPlan:
    """One forward pass of the target: the committed prefix and the nodes verified below it.

    `own_q` says under the `rejection` rule what the cloud's own nodes, the last ones, were drawn from.
    """

    # Commits and early verdicts name the pass that they come from.
    pass_id: int
    prefix: Tokens
    nodes: Subtree
    own_q: tuple[Support, ...] = ()


def with_free_draft(plan: PassPlan, draft: FreeDraft) -> tuple[PassPlan, dict[int, float]]:
    """Return the plan with the nodes of `draft` that it does not hold yet, and P(node | parent) of those."""
    nodes = plan.nodes
    rows = {(p, t): row for row, (t, p) in enumerate(zip(nodes.tokens, nodes.parents, strict=True), 1)}
    known = len(rows)
    placed, chances = [0], dict[int, float]()
    for token, parent, chance in draft.rows():
        row = rows.setdefault((placed[parent], token), len(rows) + 1)
        placed.append(row)
        if row > known:
            chances[row] = chance
    new = [place for place, row in rows.items() if row > known]
    grown = nodes.grown(tuple(token for _, token in new), tuple(parent for parent, _ in new))
    numbered = {grown.numbers[row - 1]: chance for row, chance in chances.items()}
    return replace(plan, nodes=grown), numbered


MAX_STEPS = 16
"""Draft steps of the cloud in front of one pass, at most."""


def drafted_token_s(pass_s: float, step_s: float, acceptance: float, most: int = MAX_STEPS) -> float:
    """Return the seconds per token with the best number of draft steps, 1 to `most`, before each pass."""
    best_s, tokens, power = math.inf, 1.0, 1.0
    for steps in range(1, most + 1):
        power *= acceptance
        tokens += power
        # (T + n t) / (1 + α + … + α^n) (2211.17192, section 3.5).
        best_s = min(best_s, (pass_s + steps * step_s) / tokens)
    return best_s


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """What one step takes in the cloud, in seconds: of the draft, of the target, and of the target over a few
    drafted tokens. Measured before the first answer (`cloud.own_draft`)."""

    step_s: float
    plain_s: float
    verify_s: float

    def gain(self, acceptance: float) -> float:
        """Return how often a token of drafting here goes into one of the target alone, for the best length.

        As theorem 3.8 of 2211.17192, with a pass over drafts that may take longer than a step.
        """
        return self.plain_s / drafted_token_s(self.verify_s, self.step_s, acceptance)


@dataclass(frozen=True, slots=True)
class ColocatedDraft:
    """A copy of the draft model beside the target, for one answer. `clock` is that of its steps.

    `costs` is None where they have not been measured.
    """

    context: ModelContext
    clock: Clock
    costs: DraftCosts | None = None


@dataclass(frozen=True, slots=True)
class DraftStep:
    """A step that a policy wants of the copy: a tree below a prefix, and which of its rows it asks for."""

    prefix: Tokens
    tree: Tree
    rows: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedStep:
    """What became of a `DraftStep`. `scores` has the asked rows alone, in their order.

    `rows` were asked for in this step by all the `drafting` answers that shared it; it took `seconds`.
    """

    scores: Scores
    rows: int
    seconds: float
    drafting: int = 1


DraftSteps: TypeAlias = "Generator[DraftStep, DraftedStep, PassPlan]"
"""The steps that a policy wants before a pass, one after the other, and then the plan that they make."""


def draft_alone(steps: DraftSteps, helper: ColocatedDraft) -> PassPlan:
    """Run the steps of one answer by themselves; return its plan."""
    try:
        step = next(steps)
        while True:
            began_s = helper.clock.now()
            scores = helper.context.choose(step.prefix, step.tree, rows=step.rows)
            seconds = helper.clock.now() - began_s
            step = steps.send(DraftedStep(scores=scores, rows=len(step.rows), seconds=seconds))
    except StopIteration as end:
        plan: PassPlan = end.value
        return plan


class EarlyExitHook(Protocol):
    """Receives early verdicts while a pass runs, on the thread that runs it."""

    def __call__(self, early: EarlyExitVerdict, /) -> None:
        """Take one early verdict."""
        ...


class CloudPolicy(ABC):
    """The cloud half of a strategy, one answer long. Times are seconds of the session owner's clock.

    `wants_exits`: the target's early exits are run and their verdicts sent to the edge. `is_pipeline`: the
    edge drafts on while a pass runs, so under the `rejection` rule it may have drawn the token after a fully
    accepted chain already; that one must be tried, and there is no bonus token. `wake_s` is when `next_pass`
    wants to be asked again after it has returned None; None: when something new has come. `floor` is how
    likely a node must be for the next pass to verify it, for the edge; 0: it need not know.
    """

    # The defaults of a policy that verifies what is there; subclasses override them, some for each pass.
    wants_exits: bool = False
    is_pipeline: bool = False
    wake_s: float | None = None
    floor: float = 0.0

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:  # noqa: B027
        """Learn what is asked for. `has_helper`: there is a draft model beside the target.

        Raises ConfigError if the policy needs one and there is none.
        """

    def recall_from(self, memory: FreeDrafts) -> None:  # noqa: B027
        """Learn, before the answer begins, what answers the robot has been given (`decoding.free_drafts`)."""

    def recalled(self, plan: PassPlan) -> PassPlan:
        """Return the plan with what is recalled of earlier answers, as nodes numbered below 0."""
        return plan

    def expect(self, costs: DraftCosts) -> None:  # noqa: B027
        """Learn what passes, and steps of a draft model beside the target, took before the first answer."""

    def priced(self, price: Price) -> None:  # noqa: B027
        """Learn what the GPU's time costs now, before `next_pass` is asked; without it nobody else waits."""

    def at(self, now_s: float) -> None:  # noqa: B027
        """Learn the time at which `next_pass` is about to be asked."""

    def received(self, draft: DraftMessage, now_s: float) -> None:  # noqa: B027
        """Learn that a draft message has come; its nodes are in the tree already."""

    @abstractmethod
    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Return the live nodes to verify (with their ancestors), () for a plain step, None to wait."""

    def extend(self, plan: PassPlan, helper: ColocatedDraft) -> PassPlan:  # noqa: ARG002
        """Return the plan with nodes of the cloud's own, numbered below 0. Runs on the pass's thread."""
        return plan

    def draft_steps(self, plan: PassPlan, helper: ColocatedDraft, answers: int) -> DraftSteps | None:  # noqa: ARG002
        """Return what `extend` does as steps, to be shared with others of a pass with so many answers.

        None: this policy has only `extend`. Runs on the pass's thread.
        """
        return None

    def shares(self, answers: int, nodes: int, fills: int) -> None:  # noqa: B027
        """Learn that a pass holds `nodes` nodes of so many answers, of which `fills` read their prompts."""

    def drafted(self, seconds: float) -> None:  # noqa: B027
        """Learn how long the shared steps before a pass took, those of other answers included."""

    def completed(self, plan: PassPlan, commit: Commit) -> None:  # noqa: B027
        """Learn what came of a pass and how long it took (`commit.compute_s`)."""
