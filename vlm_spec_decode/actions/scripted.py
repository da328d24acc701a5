"""Carrying out a plan on the thread that owns the clock: evaluation in virtual time, tests, scripts."""

from __future__ import annotations

from vlm_spec_decode.actions.executor import Executor
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.core.ports import Clock


def run_plan(executor: Executor, plan: Plan, clock: Clock, timeout_s: float = 120.0) -> PlanStatus:
    """Tick until `plan` has ended, being its heartbeat too; return where it stands then.

    Returns early when all known actions of a plan that is not final are carried out, and after `timeout_s` of
    the clock whatever the state.
    """
    give_up_s = clock.now() + timeout_s
    while True:
        executor.submit(plan)
        executor.tick()
        status = executor.status()
        waits = status.state == "idle" and status.actions_done >= len(plan.actions)
        mine = (status.mission, status.answer) == (plan.mission, plan.answer)
        if (mine and (status.is_terminal or waits)) or status.state == "estop" or clock.now() > give_up_s:
            return status
        clock.sleep(executor.period_s)
