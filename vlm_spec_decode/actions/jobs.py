"""Driver calls that take seconds, run where they block nobody.

A robot in real time gets `ThreadRunner`; in virtual time, where one thread owns the clock, `InlineRunner`
runs the call on the spot and virtual seconds pass meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vlm_spec_decode.core.errors import Cancelled, RobotError


@dataclass(slots=True)
class Job:
    """A call under way or ended: `ended` and then either `succeeded` or an `error`."""

    name: str
    ended: bool = False
    succeeded: bool = False
    error: RobotError | Cancelled | None = None

    def run(self, call: Callable[[], None]) -> None:
        """Carry out `call` on this thread; whatever happens, the job has ended afterwards."""
        try:
            call()
            self.succeeded = True
        except (RobotError, Cancelled) as problem:
            self.error = problem
        finally:
            self.ended = True


@dataclass(frozen=True, slots=True)
class Call:
    """A driver's call that has not begun."""

    name: str
    run: Callable[[], None]


class Runner(Protocol):
    """Runs one call and answers at once, or when it has ended."""

    @property
    def concurrent(self) -> bool:
        """Whether others go on while a call runs."""
        ...

    def run(self, job: Job, call: Call) -> None:
        """Carry out `call` as `job`, which its owner has registered before: it counts as running already."""
        ...


class ThreadRunner:
    """A daemon thread per call, so that a robot that never answers cannot hold the process."""

    concurrent = True

    def run(self, job: Job, call: Call) -> None:
        """Start `call` on a thread of its own."""
        threading.Thread(target=job.run, args=(call.run,), name=f"robot-{call.name}", daemon=True).start()


class InlineRunner:
    """Runs calls on the caller's thread."""

    concurrent = False

    def run(self, job: Job, call: Call) -> None:
        """Carry out `call` now."""
        job.run(call.run)
