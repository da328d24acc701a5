"""Which mission is under way and which wait: names, supersession, the queue. Knows no ROS, no threads."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from vlm_spec_decode.bridge.missions import Job
from vlm_spec_decode.bridge.requests import Request
from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.edge.mission import check_instruction

MAX_WAITING = 16
REMEMBERED = 256


@dataclass(slots=True)
class Orders:
    """The present job and the ones behind it. `prefix` makes names of this process's own."""

    prefix: str
    current: Job | None = None
    waiting: deque[Job] = field(default_factory=deque)
    missions: int = 0
    _used: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def job(self, request: Request) -> Job:
        """Return the job of a request. Raises InstructionError for a name that was used before."""
        self.missions += 1
        name = request.mission or f"{self.prefix}-{self.missions}"
        if name in self._used:
            raise InstructionError(f"mission {name!r} has been here before; a name is used once")
        self._used[name] = None
        if len(self._used) > REMEMBERED:
            self._used.popitem(last=False)
        return Job(name, check_instruction(request.instruction), request.approve, request.dry_run)

    def enqueue(self, job: Job) -> None:
        """Put a job behind the others. Raises InstructionError if too many wait."""
        if len(self.waiting) >= MAX_WAITING:
            raise InstructionError(f"{MAX_WAITING} missions wait already")
        self.waiting.append(job)

    def withdraw(self, mission: str) -> Job | None:
        """Take a waiting job out of the queue; None if it does not wait."""
        for job in self.waiting:
            if job.mission == mission:
                self.waiting.remove(job)
                return job
        return None

    def drop_waiting(self) -> list[Job]:
        """Empty the queue and return what was in it."""
        dropped = list(self.waiting)
        self.waiting.clear()
        return dropped
