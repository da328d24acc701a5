"""Requests and the queue of missions: names, supersession, waiting missions, ends. Independent of ROS.

A request is strict JSON on `vlm/request`; the node acknowledges it on `vlm/ack`. A request with a lease
lives only as long as its client sends heartbeats on `vlm/heartbeat`, so that no robot walks on without its
client.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.core.types import MAX_INSTRUCTION_CHARS
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.mission.state import MissionJob, MissionStatus

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a mission may be called by whoever asks for it."""

MIN_LEASE_S, MAX_LEASE_S = 0.2, 60.0
"""Shorter than the first, and a moment in which the computer is busy would end a mission."""

MAX_REQUEST_CHARS = 6 * MAX_INSTRUCTION_CHARS + 1000
"""Every character may be escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissionRequest:
    """One instruction and how it is to be carried out.

    `mission` names it, so that its sender knows it again; empty: the node names it. `approve` shows each plan
    and waits for a yes, `dry_run` shows what would be sent and sends nothing, `queue` waits for the mission
    under way instead of superseding it. `lease_s` is the silence of the asker's heartbeat that cancels the
    mission; 0: the mission goes on without one. The same request under the same name may come again: it is
    acknowledged again and carried out once.
    """

    instruction: str
    mission: str = ""
    approve: bool = False
    dry_run: bool = False
    queue: bool = False
    lease_s: float = 0.0

    def __post_init__(self) -> None:
        """Raise InstructionError for an instruction, a name or a lease that cannot be used."""
        check_instruction(self.instruction)
        if self.lease_s and not MIN_LEASE_S <= self.lease_s <= MAX_LEASE_S:
            raise InstructionError(f"lease_s: 0 (none) or {MIN_LEASE_S:g} to {MAX_LEASE_S:g} seconds")
        if self.lease_s and not self.mission:
            raise InstructionError("lease_s: a mission without a name has no heartbeat")
        if self.mission and NAME.fullmatch(self.mission) is None:
            raise InstructionError("mission: 1 to 64 of A-Z a-z 0-9 _ . - make a name")

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MissionRequest:
        """Return the request in `text`. Raises InstructionError for anything that is not exactly one."""
        if len(text) > MAX_REQUEST_CHARS:
            raise InstructionError(f"a request longer than {MAX_REQUEST_CHARS} characters")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InstructionError(f"request: not JSON: {error}") from error
        if not isinstance(data, dict) or "instruction" not in data:
            raise InstructionError("request: expected a JSON object with an `instruction`")
        unknown = sorted(str(key)[:40] for key in data if key not in cls.__slots__)
        if unknown:
            raise InstructionError(f"request: unknown key(s) {', '.join(unknown)}")
        _check_types(data)
        return cls(**data)


def _check_types(data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        if key == "lease_s":
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            is_right, wanted = is_number and math.isfinite(value), "number"
        else:
            kind = str if key in {"instruction", "mission"} else bool
            is_right, wanted = isinstance(value, kind), kind.__name__
        if not is_right:
            raise InstructionError(f"request: {key} must be a {wanted}")


AckState: TypeAlias = Literal["taken", "refused", "over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The VLM node's reply on `vlm/ack`, sent at once, to a request, an instruction or a heartbeat.

    `taken`: it is or was the node's mission (`topic` is where it came from); sent again for a repeated
    request. `refused`: it will not be carried out, with reason and detail. `over`: a heartbeat came for
    a mission that has ended, or never existed; `status` then is how it ended (`failed` if unknown).
    `listeners` is how many subscribers of `topic` the node knows, itself among them: a client that leaves
    after its request should wait until it has as many.
    """

    state: AckState
    mission: str
    topic: str = "vlm/request"
    reason: str = ""
    detail: str = ""
    status: str = ""
    listeners: int = 0

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


MAX_WAITING = 16
REMEMBERED = 256

Kept = TypeVar("Kept")


@dataclass(slots=True)
class MissionQueue:
    """The present job and the ones behind it. `prefix` makes names of this process's own."""

    prefix: str
    current: MissionJob | None = None
    waiting: deque[MissionJob] = field(default_factory=deque)
    missions: int = 0
    _used: OrderedDict[str, MissionRequest | None] = field(default_factory=OrderedDict)
    _endings: OrderedDict[str, MissionStatus] = field(default_factory=OrderedDict)

    def job(self, request: MissionRequest) -> MissionJob:
        """Return the job of a request. Raises InstructionError for a name that was used before."""
        self.missions += 1
        name = request.mission or f"{self.prefix}-{self.missions}"
        if name in self._used:
            raise InstructionError(f"mission {name!r} has been here before; a name is used once")
        _remember(self._used, name, request)
        return MissionJob(name, check_instruction(request.instruction), request.approve, request.dry_run)

    def repeats(self, request: MissionRequest) -> bool:
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

    def enqueue(self, job: MissionJob) -> None:
        """Put a job behind the others. Raises InstructionError if too many wait."""
        if len(self.waiting) >= MAX_WAITING:
            self._used[job.mission] = None
            raise InstructionError(f"{MAX_WAITING} missions wait already")
        self.waiting.append(job)

    def withdraw(self, mission: str) -> MissionJob | None:
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

    def drop_waiting(self) -> list[MissionJob]:
        """Empty the queue and return what was in it."""
        dropped = list(self.waiting)
        self.waiting.clear()
        return dropped


def _remember(kept: OrderedDict[str, Kept], name: str, value: Kept) -> None:
    kept[name] = value
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)


LATE_S = 0.15
"""How late a look may come and still count as one. Beyond that this process was not running: what its askers
said meanwhile has yet to be read, so the time is not counted as their silence."""


@dataclass(slots=True)
class MissionLeases:
    """The missions with a lease and the time of each one's last heartbeat, in seconds of one clock."""

    period_s: float
    """How often `expired` is called."""
    _silence_s: dict[str, float] = field(default_factory=dict)
    _heard_s: dict[str, float] = field(default_factory=dict)
    _looked_s: float | None = None

    def begin(self, mission: str, silence_s: float, now_s: float) -> None:
        """Let a mission live as long as no silence is longer than `silence_s`; 0: it needs no heartbeat."""
        if silence_s > 0:
            self._silence_s[mission], self._heard_s[mission] = silence_s, now_s

    def beat(self, mission: str, now_s: float) -> None:
        """Take a heartbeat; one for a mission without a lease is ignored."""
        if mission in self._heard_s:
            self._heard_s[mission] = now_s

    def end(self, mission: str) -> None:
        """Forget a mission that is over."""
        self._silence_s.pop(mission, None)
        self._heard_s.pop(mission, None)

    def expired(self, now_s: float) -> list[str]:
        """Return the missions whose askers have fallen silent, and forget them."""
        late_s = 0.0 if self._looked_s is None else now_s - self._looked_s - self.period_s
        self._looked_s = now_s
        if late_s > LATE_S:
            self._heard_s = {mission: heard_s + late_s for mission, heard_s in self._heard_s.items()}
        found = [m for m, heard_s in self._heard_s.items() if now_s - heard_s > self._silence_s[m]]
        for mission in found:
            self.end(mission)
        return found
