"""`vlm/execute`: missions as a ROS 2 action (ExecuteInstruction).

A goal is an instruction, feedback its state, its text and how much of the present plan is carried out; cancel
withdraws the mission. A new goal supersedes the mission under way like any other instruction, and the e-stop
ends it. A goal that cannot be used is rejected; why is on `vlm/ack` and `vlm/status`, as a rejection has no
text.

No thread waits for a mission: rclpy's own way, a callback that lasts as long as its goal, would need a thread
of the executor for each of the goals that wait. So a goal is marked as executing here, and its callback runs
at its end only.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.mission.queue import MAX_REMEMBERED, MissionRequest
from vlm_spec_decode.mission.state import END_STATES, MissionStatus
from vlm_spec_decode.ros import typed
from vlm_spec_decode_msgs.action import ExecuteInstruction

ACTION_NAME = "vlm/execute"


@dataclass(slots=True)
class _Goal:
    """One mission that was asked for by the action. A goal that was sent again has several handles."""

    handles: list[Any]
    status: MissionStatus
    text: str = ""
    planned: int = 0
    answer: int = -1
    executed: dict[int, tuple[str, ...]] = field(default_factory=dict)
    is_executing: bool = False
    told: Any = None

    @property
    def progress(self) -> float:
        """Share of the present plan's actions that is carried out."""
        done = len(self.executed.get(self.answer, ()))
        return min(1.0, done / self.planned) if self.planned else 0.0


class _Server(ActionServer):  # type: ignore[misc]
    """Schedules nothing when a goal begins; `notify_execute` with a callback ends it."""

    def notify_execute(self, goal_handle: Any, execute_callback: Callable[[Any], Any] | None) -> None:
        """See `ActionServer.notify_execute`."""
        if execute_callback is not None:
            super().notify_execute(goal_handle, execute_callback)


class MissionActionServer:
    """Serves `vlm/execute`. The methods `on_…` may be called from any thread."""

    def __init__(
        self,
        node: Node,
        group: CallbackGroup,
        *,
        check: Callable[[MissionRequest], None],
        submit: Callable[[MissionRequest], None],
        withdraw: Callable[[str], None],
        end_status: Callable[[str], MissionStatus | None],
        refuse: Callable[[str, InstructionError], None],
        now_s: Callable[[], float],
    ) -> None:
        """`group` is that of the callbacks which start and end missions.

        `check` raises InstructionError for a request that cannot be taken; `submit` takes one; `withdraw` has
        the mission of a name end once the present callback is over, when its goal may end as cancelled;
        `end_status` is the last status of a mission that has ended, None for any other; `refuse` says why
        that of a name was rejected.
        """
        self._node, self._now_s = node, now_s
        self._check, self._submit, self._withdraw, self._refuse = check, submit, withdraw, refuse
        self._end_status = end_status
        self._goals: dict[str, _Goal] = {}
        self._executed: OrderedDict[str, dict[int, tuple[str, ...]]] = OrderedDict()
        """What was carried out for missions that have ended, for goals that are sent again."""
        self._lock = threading.RLock()
        self._count = 0
        self._server = _Server(
            node,
            ExecuteInstruction,
            ACTION_NAME,
            lambda _: ExecuteInstruction.Result(),
            callback_group=group,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )

    # Called by rclpy -----------------------------------------------------------------------------

    def _on_goal(self, goal: Any) -> Any:
        try:
            self._check(typed.request_from_message(goal))
        except InstructionError as error:
            self._refuse(str(goal.mission), error)
            return GoalResponse.REJECT
        if not goal.mission:
            self._count += 1
            goal.mission = f"goal-{self._node.get_clock().now().nanoseconds:x}-{self._count}"
        return GoalResponse.ACCEPT

    def _on_accepted(self, handle: Any) -> None:
        request = typed.request_from_message(handle.request)
        with self._lock:
            known = self._goals.get(request.mission)
            if known is not None:
                known.handles.append(handle)
                if known.is_executing:
                    handle.execute()
            else:
                waits = MissionStatus(
                    state="queued", mission=request.mission, instruction=request.instruction
                )
                executed = self._executed.get(request.mission, {})
                self._goals[request.mission] = _Goal([handle], waits, executed=dict(executed))
        self._submit(request)
        # A goal that is sent again once its mission has ended gets no status any more: it ends as that did.
        if (ended := self._end_status(request.mission)) is not None:
            self.on_status(ended)

    def _on_cancel(self, handle: Any) -> Any:
        mission = str(handle.request.mission)
        with self._lock:
            if mission not in self._goals:
                return CancelResponse.REJECT
        self._withdraw(mission)
        return CancelResponse.ACCEPT

    # Reports of the missions -----------------------------------------------------------------------

    def on_status(self, status: MissionStatus) -> None:
        """Tell the goal of a mission its new state; end it with an end state."""
        with self._lock:
            goal = self._goals.get(status.mission)
            if goal is None:
                return
            if status.state == "answering":
                goal.text = ""
            goal.status = status
            if status.state in END_STATES:
                del self._goals[status.mission]
                self._executed[status.mission] = goal.executed
                while len(self._executed) > MAX_REMEMBERED:
                    self._executed.popitem(last=False)
                self._end(goal)
            else:
                if status.state != "queued" and not goal.is_executing:
                    self._execute(goal)
                self._tell(goal)

    def on_text(self, mission: str, text: str) -> None:
        """Tell the goal of a mission the committed text of its present answer."""
        with self._lock:
            if goal := self._goals.get(mission):
                goal.text = text
                self._tell(goal)

    def on_plan(self, plan: Plan) -> None:
        """Note how many actions the plan of a mission has."""
        with self._lock:
            if (goal := self._goals.get(plan.mission)) and plan.actions:
                goal.answer, goal.planned = plan.answer, len(plan.actions)
                self._tell(goal)

    def on_plan_status(self, status: PlanStatus) -> None:
        """Note what was carried out."""
        with self._lock:
            goal = self._goals.get(status.mission)
            if goal and status.executed != goal.executed.get(status.answer, ()):
                goal.executed[status.answer] = status.executed
                self._tell(goal)

    def close(self) -> None:
        """End every goal. The server is freed with the node's entities. Idempotent.

        Their results are sent by the node's executor: it must be spun once more.
        """
        with self._lock:
            goals, self._goals = list(self._goals.items()), {}
            for mission, goal in goals:
                goal.status = MissionStatus(state="cancelled", mission=mission, detail="the node ends")
                self._end(goal)

    @staticmethod
    def _execute(goal: _Goal) -> None:
        goal.is_executing = True
        for handle in goal.handles:
            handle.execute()

    def _tell(self, goal: _Goal) -> None:
        news = (goal.status, goal.progress, goal.text)
        if news == goal.told:
            return
        goal.told = news
        feedback = ExecuteInstruction.Feedback(
            status=typed.mission_status_to_message(goal.status, self._now_s()),
            progress=goal.progress,
            text=goal.text,
        )
        for handle in goal.handles:
            handle.publish_feedback(feedback)

    def _end(self, goal: _Goal) -> None:
        status = goal.status
        result = ExecuteInstruction.Result(
            status=typed.mission_status_to_message(status, self._now_s()),
            text=": ".join(part for part in (status.state, status.reason, status.detail) if part),
            executed=[text for _, texts in sorted(goal.executed.items()) for text in texts],
        )

        def finish(handle: Any) -> Any:
            if status.state == "done":
                handle.succeed()
            elif handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
            return result

        if not goal.is_executing:
            self._execute(goal)
        for handle in goal.handles:
            self._server.notify_execute(handle, finish)
