"""A guard around every callback of a node: no message may end the node.

In rclpy an exception of a callback ends the executor, and with it the process. A message of another node must
not end the node that handles every stop. So nodes subscribe with `subscribe`: an error is counted and logged
with its topic, reported to the parts that depend on the topic, and shown in `/diagnostics`.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from vlm_spec_decode.ros import diagnostics

WARN_EVERY_S = 5.0


@dataclass(slots=True)
class _Fault:
    """How often one callback has failed, and its last error."""

    count: int = 0
    last: str = ""


_LOCK = threading.Lock()
_FAULTS: WeakKeyDictionary[Any, dict[str, _Fault]] = WeakKeyDictionary()


def subscribe(
    node: Any,
    kind: Any,
    topic: str,
    callback: Callable[[Any], None],
    qos: Any,
    *,
    on_fault: Callable[[str], None] | None = None,
    **options: Any,
) -> Any:
    """Subscribe to `topic` with a guarded callback and return the subscription.

    `on_fault` gets the error of `callback` in one line, so that dependants can count the topic as silent.
    """
    return node.create_subscription(kind, topic, guarded(node, topic, callback, on_fault), qos, **options)


def guarded(
    node: Any, name: str, callback: Callable[[Any], None], on_fault: Callable[[str], None] | None = None
) -> Callable[[Any], None]:
    """Return `callback` with every Exception caught, counted under `name` and logged."""

    def handle(message: Any) -> None:
        try:
            callback(message)
        except Exception as error:  # noqa: BLE001  # whatever the error, the node must go on
            problem = f"{type(error).__name__}: {error}"[:300]
            _note(node, name, problem)
            if on_fault is not None:
                on_fault(problem)

    return handle


def guarded_timer(node: Any, name: str, act: Callable[[], None]) -> Callable[[], None]:
    """Return a timer's callback behind the same guard."""
    handle = guarded(node, f"timer {name}", lambda _: act())
    return lambda: handle(None)


class PausedTimer:
    """A timer of a node that runs only while it is wanted, so that it costs nothing while all rests.

    Safe for threads.
    """

    def __init__(self, node: Any, period_s: float, act: Callable[[], None], group: Any, clock: Any) -> None:
        """Create the timer; it does not run yet."""
        self._node, self._lock = node, threading.Lock()
        self._timer = node.create_timer(period_s, act, group, clock=clock)
        self._timer.cancel()

    def run_if(self, is_wanted: Callable[[], bool]) -> None:
        """Let it run from now on, first after one period, or not.

        Of several threads that come after a change the last one asks last, so none leaves it as before.
        """
        with self._lock:
            if not is_wanted():
                self._timer.cancel()
            elif self._timer.is_canceled():
                self._timer.reset()
                if self._node.executor is not None:
                    # It waits without this timer.
                    self._node.executor.wake()


def _note(node: Any, name: str, problem: str) -> None:
    with _LOCK:
        fault = _FAULTS.setdefault(node, {}).setdefault(name, _Fault())
        fault.count, fault.last = fault.count + 1, problem
    logger = node.get_logger()
    logger.error(f"{name}: dropped, it cannot be used: {problem}", throttle_duration_sec=WARN_EVERY_S)
    logger.debug(traceback.format_exc())


def fault_lines(node: Any, name: str) -> list[diagnostics.Health]:
    """Return a line of diagnostics that names every callback of `node` that has failed; none if none has."""
    with _LOCK:
        faults = {topic: (fault.count, fault.last) for topic, fault in _FAULTS.get(node, {}).items()}
    if not faults:
        return []
    values = {topic: f"{count}; last: {last}" for topic, (count, last) in sorted(faults.items())}
    total = sum(count for count, _ in faults.values())
    message = f"{total} messages could not be used: {', '.join(sorted(faults))}"
    return [diagnostics.Health(f"{name}: messages", diagnostics.WARN, message, values)]
