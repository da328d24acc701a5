"""The cloud's own drafting for several answers of one pass: one step of the copy drafts for all of them.

A policy says step by step what it wants of the copy (`CloudPolicy.draft_steps`). The steps of all answers of
a pass run side by side, each as one batch, until none wants another. One after the other they would hold up
the pass by the sum of their times. A policy without `draft_steps` drafts by itself first
(`CloudPolicy.extend`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TypeAlias

from vlm_spec_decode.core.errors import NotFinite, VsdError
from vlm_spec_decode.core.ports import Model, Scored, ScoreRequest
from vlm_spec_decode.decoding.policy import DraftedStep, DraftStep, DraftSteps, PassPlan
from vlm_spec_decode.decoding.session import Session

log = logging.getLogger(__name__)

Failures: TypeAlias = tuple[type[Exception], ...]

Prepared: TypeAlias = "PassPlan | Exception"
"""The plan with the cloud's own nodes, or what ended the answer."""


@dataclass(slots=True)
class _Drafting:
    """One answer that drafts: the steps that it wants, and the one that comes next."""

    index: int
    session: Session
    steps: DraftSteps
    wanted: DraftStep

    def request(self) -> ScoreRequest:
        """Return the wanted step as a part of a batch."""
        assert self.session.helper is not None
        wanted = self.wanted
        return ScoreRequest(self.session.helper.context, wanted.prefix, *wanted.tree, rows=wanted.rows)


def prepare_together(
    planned: Seq[tuple[Session, PassPlan]], draft: Model | None, failures: Failures = (VsdError,)
) -> list[Prepared]:
    """Let the copies of `draft` add to the plans of one pass; return the plans in their order.

    What an answer's own steps raise of `failures` ends that answer alone. Drafts are hints: where the copy's
    logits cannot be used, or a shared step fails, plans stay as they were.
    """
    prepared: list[Prepared] = [plan for _, plan in planned]
    drafting: list[_Drafting] = []
    for index, (session, plan) in enumerate(planned):
        steps = session.draft_steps(plan, len(planned)) if draft and len(planned) > 1 else None
        try:
            if steps is None:
                prepared[index] = session.prepare(plan)
            else:
                drafting.append(_Drafting(index, session, steps, next(steps)))
        except StopIteration as end:
            prepared[index] = session.runnable(end.value)
        except failures as error:
            prepared[index] = error
    drafted_s = 0.0
    while draft and drafting:
        helper = drafting[0].session.helper
        assert helper is not None  # all are copies of one model, on one clock
        began_s = helper.clock.now()
        try:
            scored = draft.score_batch([each.request() for each in drafting])
        except failures as error:
            log.warning("a step of the draft for %d answers failed: %s", len(drafting), error)
            break
        seconds = helper.clock.now() - began_s
        drafted_s += seconds
        drafting = _continue(drafting, scored, seconds, prepared)
    whole = [plan for plan in prepared if isinstance(plan, PassPlan)]
    nodes, fills = sum(len(plan.nodes.tokens) for plan in whole), sum(plan.pass_id == 1 for plan in whole)
    for session, _ in planned:
        session.policy.drafted(drafted_s)
        session.policy.shares(len(whole), nodes, fills)
    return prepared


def _continue(
    drafting: Seq[_Drafting], scored: Seq[Scored], seconds: float, prepared: list[Prepared]
) -> list[_Drafting]:
    """Give each answer what its step has said; return those that want another one."""
    rows = sum(len(each.wanted.rows) for each in drafting)
    going = list[_Drafting]()
    for each, found in zip(drafting, scored, strict=True):
        try:
            if isinstance(found, VsdError):
                raise found
            step = DraftedStep(scores=found, rows=rows, seconds=seconds, drafting=len(drafting))
            each.wanted = each.steps.send(step)
            going.append(each)
        except StopIteration as end:
            prepared[each.index] = each.session.runnable(end.value)
        except NotFinite as error:
            each.session.drop_draft(error)
        except VsdError as error:
            prepared[each.index] = error
    return going
