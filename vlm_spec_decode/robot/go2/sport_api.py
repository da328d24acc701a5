"""The sport service's calls as messages: api id and JSON out, return code back, over any carrier.

What Unitree's SDK does inside, for carriers that it does not know, such as ROS 2 topics with `unitree_api`
messages. Ids and JSON keys are the SDK's. Knows neither SDK nor ROS.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.robot.go2 import codes


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One call: its id, the JSON keys of its arguments, and whether the robot answers it."""

    id: int
    keys: tuple[str, ...] = ()
    is_answered: bool = True


APIS: dict[str, ApiCall] = {
    "Damp": ApiCall(1001),
    "BalanceStand": ApiCall(1002),
    "StopMove": ApiCall(1003),
    "StandUp": ApiCall(1004),
    "StandDown": ApiCall(1005),
    "RecoveryStand": ApiCall(1006),
    "Euler": ApiCall(1007, ("x", "y", "z")),
    "Move": ApiCall(1008, ("x", "y", "z"), is_answered=False),
    "Sit": ApiCall(1009),
    "RiseSit": ApiCall(1010),
    "Hello": ApiCall(1016),
    "Stretch": ApiCall(1017),
    "Pose": ApiCall(1028, ("data",)),
}
"""Every call that `go2_postures` and the driver make; nothing acrobatic can be said."""


class RequestCarrier(Protocol):
    """Takes requests to the robot; its answers go to `PendingReplies.put`, from any thread."""

    def send(self, request_id: int, api: ApiCall, parameter: str) -> bool:
        """Send; False if nobody listens. Never blocks."""
        ...


class PendingReplies:
    """Which caller waits for which reply. Safe for threads."""

    def __init__(self, clock: Clock) -> None:
        # As the SDK does: the clock's nanoseconds, so that a restarted client repeats no id.
        self._ids: Iterator[int] = itertools.count(int(clock.now() * 1e9) + 1)
        self._changed = threading.Condition()
        self._codes: dict[int, int | None] = {}

    def expect(self) -> int:
        """Return a new request's id, whose answer is waited for from now on."""
        with self._changed:
            request_id = next(self._ids)
            self._codes[request_id] = None
            return request_id

    def put(self, request_id: int, code: int) -> None:
        """Take an answer; one that nobody waits for (another client's, or too late) is dropped."""
        with self._changed:
            if request_id in self._codes:
                self._codes[request_id] = code
                self._changed.notify_all()

    def wait(self, request_id: int, timeout_s: float) -> int | None:
        """Return its code, or None if it has not come in time; either way it is no longer waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._codes[request_id] is not None, timeout_s)
            return self._codes.pop(request_id)


class SportCalls:
    """`robot.go2.link.Calls` over a carrier. Codes are those of the SDK: 3102 unheard, 3104 unanswered."""

    def __init__(self, carrier: RequestCarrier, replies: PendingReplies, timeout_s: float) -> None:
        self._carrier = carrier
        self._replies = replies
        self._timeout_s = timeout_s

    def call(self, name: str, *arguments: float) -> int:
        """Make one call and return its code. Raises KeyError for one that is not in `APIS`."""
        api = APIS[name]
        parameter = json.dumps(dict(zip(api.keys, arguments, strict=True)))
        request_id = self._replies.expect()
        is_heard = self._carrier.send(request_id, api, parameter)
        wait_s = self._timeout_s if is_heard and api.is_answered else 0.0
        code = self._replies.wait(request_id, wait_s)
        if not is_heard:
            return codes.CLIENT_SEND
        if not api.is_answered:
            return codes.OK
        return codes.TIMEOUT if code is None else code
