"""Which mission is under way, which wait, how others ended: names, supersession, the queue. Knows no ROS."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TypeVar

from vlm_spec_decode.bridge.missions import Job
from vlm_spec_decode.bridge.reports import MissionStatus
from vlm_spec_decode.bridge.requests import NAME, Request
from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.edge.mission import check_instruction

MAX_WAITING = 16
REMEMBERED = 256

Kept = TypeVar("Kept")


@dataclass(slots=True)
class Orders:
    """The present job and the ones behind it. `prefix` makes names of this process's own."""

    prefix: str
    current: Job | None = None
    waiting: deque[Job] = field(default_factory=deque)
    missions: int = 0
    _used: OrderedDict[str, Request | None] = field(default_factory=OrderedDict)
    _endings: OrderedDict[str, MissionStatus] = field(default_factory=OrderedDict)

    def job(self, request: Request) -> Job:
        """Return the job of a request. Raises InstructionError for a name that was used before."""
        self.missions += 1
        name = request.mission or f"{self.prefix}-{self.missions}"
        if name in self._used:
            raise InstructionError(f"mission {name!r} has been here before; a name is used once")
        _remember(self._used, name, request)
        return Job(name, check_instruction(request.instruction), request.approve, request.dry_run)

    def repeats(self, request: Request) -> bool:
        """Whether this very request was taken before, under its own name."""
        return bool(request.mission) and self._used.get(request.mission) == request

    def is_alive(self, mission: str) -> bool:
        """Whether a mission is under way or waits."""
        return any(job.mission == mission for job in (self.current, *self.waiting) if job is not None)

    def end(self, status: MissionStatus) -> None:
        """Remember how a mission ended."""
        if status.mission:
            _remember(self._endings, status.mission, status)

    def ending(self, mission: str) -> MissionStatus | None:
        """Return how a mission ended; None if it has not, or was not here, or long ago."""
        return self._endings.get(mission)

    def enqueue(self, job: Job) -> None:
        """Put a job behind the others. Raises InstructionError if too many wait."""
        if len(self.waiting) >= MAX_WAITING:
            self._used[job.mission] = None
            raise InstructionError(f"{MAX_WAITING} missions wait already")
        self.waiting.append(job)

    def withdraw(self, mission: str) -> Job | None:
        """Take a waiting job out of the queue; None if it does not wait.

        A name that was never here is used from now on: its request was overtaken, and comes too late.
        """
        for job in self.waiting:
            if job.mission == mission:
                self.waiting.remove(job)
                return job
        if NAME.fullmatch(mission) and mission not in self._used:
            _remember(self._used, mission, None)
        return None

    def drop_waiting(self) -> list[Job]:
        """Empty the queue and return what was in it."""
        dropped = list(self.waiting)
        self.waiting.clear()
        return dropped


def _remember(kept: OrderedDict[str, Kept], name: str, value: Kept) -> None:
    kept[name] = value
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
