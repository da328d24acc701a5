"""What a mission waits for: frames, odometry, the executor's status, and a cancel; filled by ROS callbacks.

The one place where the mission's thread and the callbacks' threads meet. Every wait ends by a deadline
or by a cancel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.core.errors import Cancelled, InstructionError, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.pose import Pose2D, PoseHistory
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.mission.state import Shown

BROKEN_OFF = frozenset({"refused", "stopped", "fault", "estop"})
"""States of the executor in which what was planned will not be carried out."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A camera image; `stamp_s` is its capture time in ROS time."""

    image: Image
    stamp_s: float
    frame_id: str


Found = TypeVar("Found", Frame, PlanStatus)
ReplyKind = Literal["approval", "word"]


@dataclass(slots=True)
class _Question:
    """What a person is asked, and the first reply to it: a yes or no to a plan, or a word.

    `check` raises InstructionError for a word that cannot be used; `refused` counts those.
    """

    kind: ReplyKind
    shown: Shown
    check: Callable[[str], object]
    reply: bool | str | None = None
    refused: int = 0


ANY = Shown()
"""Whatever is shown."""


class MissionEvents:
    """The newest frame and status, and which answer of which mission is in progress.

    `changed` is what a mission waits on; one whose `wait_for` advances `clock` makes missions run in virtual
    time, on one thread.
    """

    def __init__(self, clock: Clock, changed: threading.Condition | None = None) -> None:
        self._clock = clock
        self._changed = changed or threading.Condition()
        self._frame: Frame | None = None
        self._status: PlanStatus | None = None
        self._status_received_s = float("-inf")
        self._mission = ""
        self._answer = 0
        self._cancelled = ("", "")
        self._question: _Question | None = None
        self._changes = self._noticed = 0
        self.poses = PoseHistory()
        """Where the body was, by odometry; empty on a robot that publishes none."""

    # Filled by callbacks -------------------------------------------------------------------------

    def put_frame(self, frame: Frame) -> None:
        """Store the newest frame."""
        with self._changed:
            self._frame = frame
            self._changes += 1
            self._changed.notify_all()

    def put_pose(self, stamp_s: float, pose: Pose2D) -> None:
        """Store the body's newest pose; its stamp is in the time of the frames' stamps."""
        self.poses.put(stamp_s, pose)
        with self._changed:
            self._changed.notify_all()

    def put_status(self, status: PlanStatus) -> bool:
        """Store the executor's newest status; return whether it ends the answer in progress."""
        with self._changed:
            self._status = status
            self._status_received_s = self._clock.now()
            self._changes += 1
            self._changed.notify_all()
            return self.broken_off() is not None

    def cancel(self, mission: str, reason: str) -> None:
        """End every wait of this mission, also if it has not begun yet."""
        with self._changed:
            self._cancelled = (mission, reason)
            self._changed.notify_all()

    def put_approval(self, yes: bool, shown: Shown = ANY) -> bool:
        """Store a person's yes or no to the plan that was `shown`; return whether somebody waits for it."""
        return self._put_reply("approval", yes, shown)

    def put_word(self, text: str, shown: Shown = ANY) -> bool:
        """Store the operator's word on the question that was `shown`; return whether somebody waits for it.

        "" is none. Of two replies to one question the first one counts. Raises InstructionError for a word
        that cannot be used; the question then stays open, and its time begins anew.
        """
        return self._put_reply("word", text, shown)

    @property
    def waits_for_word(self) -> bool:
        """Whether the mission waits for the operator's word."""
        with self._changed:
            return self._open_question("word") is not None

    def _put_reply(self, kind: ReplyKind, reply: bool | str, shown: Shown) -> bool:
        with self._changed:
            question = self._open_question(kind)
            if question is None or not shown.is_of(question.shown):
                return False
            try:
                if isinstance(reply, str) and reply.strip():
                    question.check(reply)
            except InstructionError:
                question.refused += 1
                self._changed.notify_all()
                raise
            question.reply = reply
            self._changed.notify_all()
            return True

    def _open_question(self, kind: ReplyKind) -> _Question | None:
        """Return what is asked and not replied to, unless the mission ends and no reply would be read."""
        question = self._question
        if question is None or question.kind != kind or question.reply is not None:
            return None
        return None if self._is_cancelled or self.broken_off() is not None else question

    @property
    def is_live(self) -> bool:
        """Whether a frame and a status have ever arrived."""
        return self._frame is not None and self._status is not None

    # Called by the mission -----------------------------------------------------------------------

    def begin(self, mission: str, answer: int) -> None:
        """Set the answer that is in progress from now on. Raises Cancelled."""
        with self._changed:
            self._mission, self._answer = mission, answer
            self._raise_cancelled()

    def check(self) -> None:
        """Raise Cancelled if the mission was cancelled or the executor broke the answer off."""
        with self._changed:
            self._raise_cancelled()
            if self.broken_off() is not None:
                raise Cancelled("the executor broke the plan off")

    def executed(self) -> tuple[str, ...]:
        """Return the actions of the answer in progress that are known to be carried out."""
        status = self._status
        return status.executed if status is not None and self._is_current(status) else ()

    def actions_done(self) -> int:
        """Return how many actions of the answer in progress are known to be carried out."""
        status = self.status()
        return 0 if status is None else status.actions_done

    def status(self) -> PlanStatus | None:
        """Return the executor's newest status of the answer in progress, None before there is one."""
        status = self._status
        return status if status is not None and self._is_current(status) else None

    def broken_off(self) -> PlanStatus | None:
        """Return the status that interrupts the answer in progress, if there is one."""
        status = self._status
        if status is None or status.state not in BROKEN_OFF:
            return None
        return status if self._is_current(status) or status.state == "estop" else None

    @property
    def is_settling(self) -> bool:
        """Whether the body is so near to rest, at the end of the answer in progress, that a frame counts."""
        status = self._status
        return status is not None and self._is_current(status) and status.settling

    def frame_after(self, stamp_s: float) -> Frame | None:
        """Return the newest frame if it was captured after `stamp_s`. Does not wait."""
        frame = self._frame
        return frame if frame is not None and frame.stamp_s > stamp_s else None

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the executor has received this answer and the robot stands.

        Raises Cancelled (also with a latched e-stop), or RobotUnreachable if it does not answer.
        """

        def ready() -> PlanStatus | None:
            status = self._status
            if status is None or not (self._is_current(status) or status.state == "estop"):
                return None
            return status if status.state != "moving" else None

        if self._wait(ready, timeout_s) is None:
            raise RobotUnreachable(f"locomotion_node has not taken the mission within {timeout_s:.1f} s")
        self.check()

    def wait_frame(self, after_s: float, timeout_s: float) -> Frame:
        """Wait for a frame captured after `after_s`. Raises Cancelled or RobotUnreachable."""

        def fresh() -> Frame | None:
            return self._frame if self._frame and self._frame.stamp_s > after_s else None

        frame = self._wait(fresh, timeout_s)
        if frame is None:
            raise RobotUnreachable(f"no new camera frame within {timeout_s:.1f} s: camera gone")
        return frame

    def wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for `reached`, which is asked at every event; return whether it came true.

        Also true when the executor has carried out all that it knows of the answer in progress, so that a
        motion which ended a little short is not waited for. Raises Cancelled as `check` does.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_cancelled or self.broken_off() is not None or self._has_rested() or reached()
                ),
                timeout_s,
            )
            self.check()
            return reached() or self._has_rested()

    def _has_rested(self) -> bool:
        status = self._status
        return (
            status is not None
            and self._is_current(status)
            and status.state in ("idle", "done")
            and status.actions_done > 0
        )

    def expect_approval(self, step: int, plan: str) -> None:
        """Take a yes or no to a plan from now on. Called before it is shown: a reply may be quick."""
        self._expect("approval", step, plan)

    def expect_word(self, step: int, question: str, check: Callable[[str], object] = lambda _: None) -> None:
        """Take the operator's word on a question from now on. Called before it is shown.

        `check` raises InstructionError for a word that cannot be used; it is called on the sender's thread.
        """
        self._expect("word", step, question, check)

    def _expect(
        self, kind: ReplyKind, step: int, text: str, check: Callable[[str], object] = lambda _: None
    ) -> None:
        with self._changed:
            self._question = _Question(kind, Shown(self._mission, step, text), check)

    def wait_approval(self, timeout_s: float) -> bool:
        """Wait for a yes or no that has come since `expect_approval`; silence is a no.

        Raises Cancelled as `check` does.
        """
        return bool(self._wait_reply(timeout_s))

    def wait_word(self, timeout_s: float) -> str:
        """Wait for a word of the operator that has come since `expect_word`; silence is "".

        A word that is refused breaks the silence: whoever has sent it gets as much time for another one.
        Raises Cancelled as `check` does.
        """
        return str(self._wait_reply(timeout_s) or "")

    def _wait_reply(self, timeout_s: float) -> bool | str | None:
        with self._changed:
            try:
                refused = -1
                while self._reply() is None and refused != self._refused():
                    refused = self._refused()
                    self._changed.wait_for(partial(self._has_news, refused), timeout_s)
                    self.check()
                return self._reply()
            finally:
                self._question = None

    def _has_news(self, refused: int) -> bool:
        """Whether a question is to be waited for no longer, or a word on it was refused meanwhile."""
        is_replied = self._reply() is not None or self._refused() != refused
        return is_replied or self._is_cancelled or self.broken_off() is not None

    def _reply(self) -> bool | str | None:
        return None if self._question is None else self._question.reply

    def _refused(self) -> int:
        return 0 if self._question is None else self._question.refused

    def pause(self, timeout_s: float) -> None:
        """Wait `timeout_s`, or less if the mission ends meanwhile. Raises Cancelled as `check` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_cancelled or self.broken_off() is not None, timeout_s)
            self.check()

    def wait_end(
        self, silence_s: float, limit_s: float, on_change: Callable[[], None] | None = None
    ) -> PlanStatus:
        """Wait until the answer's plan has been carried out.

        `on_change` is called meanwhile, on the caller's thread, after frames and statuses have come.

        Raises Cancelled if it is broken off; RobotUnreachable if no status came for `silence_s` or none
        that ends it within `limit_s`.
        """
        started_s = self._clock.now()
        while self._clock.now() < started_s + limit_s:
            status = self._wait_ended(silence_s / 4, on_change is not None)
            self.check()
            if status is not None:
                return status
            if on_change is not None:
                on_change()
            if self._clock.now() - max(self._status_received_s, started_s) > silence_s:
                raise RobotUnreachable(f"locomotion_node has been silent for {silence_s:.1f} s")
        raise RobotUnreachable(f"the plan was not carried out within {limit_s:.0f} s")

    def _wait_ended(self, timeout_s: float, wakes: bool) -> PlanStatus | None:
        """Wait for the end of the answer in progress; with `wakes` also until anything has come."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_cancelled
                    or self._ended() is not None
                    or (wakes and self._changes != self._noticed)
                ),
                timeout_s,
            )
            self._noticed = self._changes
            self._raise_cancelled()
            return self._ended()

    def _ended(self) -> PlanStatus | None:
        status = self._status
        return status if status and self._is_current(status) and status.is_terminal else self.broken_off()

    def _is_current(self, status: PlanStatus) -> bool:
        return (status.mission, status.answer) == (self._mission, self._answer)

    def _wait(self, read: Callable[[], Found | None], timeout_s: float) -> Found | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_cancelled or read() is not None, timeout_s)
            self._raise_cancelled()
            return read()

    @property
    def _is_cancelled(self) -> bool:
        return bool(self._mission) and self._cancelled[0] == self._mission

    @property
    def cancel_reason(self) -> str:
        """The reason that `cancel` was given for the mission in progress; "" if it was not cancelled."""
        with self._changed:
            return self._cancelled[1] if self._is_cancelled else ""

    def _raise_cancelled(self) -> None:
        if self._is_cancelled:
            raise Cancelled(self._cancelled[1])
