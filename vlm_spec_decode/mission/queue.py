"""Requests and the queue of missions: names, supersession, waiting missions, ends. Independent of ROS.

A request arrives on `vlm/request` or as a goal of `vlm/execute`; the node acknowledges it on `vlm/ack`. A
request with a lease lives only as long as its client sends heartbeats on `vlm/heartbeat`, so that no robot
walks on without its client.
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
"""Names that a client may give a mission."""

MIN_LEASE_S, MAX_LEASE_S = 0.2, 60.0
"""Bounds of a lease. With a shorter one, a short load of the computer would end a mission."""

MAX_REQUEST_CHARS = 6 * MAX_INSTRUCTION_CHARS + 1000
"""Every character may be escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissionRequest:
    """One instruction and how it is to be carried out.

    `mission` names it, so that its sender knows it again; empty: the node names it. `approve` shows each plan
    and waits for a yes, `dry_run` shows what would be sent and sends nothing, `queue` waits for the mission
    under way instead of superseding it. `lease_s` is the silence of the client's heartbeat that cancels the
    mission; 0: the mission goes on without one. The same request under the same name may come again: it is
    acknowledged again and carried out once.

    With `reply` the instruction is the operator's word on what the mission named `mission` asks, or whichever
    mission does; `step` is the one of the question, 0 for whichever is asked. It has no other options.
    """

    instruction: str
    mission: str = ""
    approve: bool = False
    dry_run: bool = False
    queue: bool = False
    lease_s: float = 0.0
    reply: bool = False
    step: int = 0

    def __post_init__(self) -> None:
        """Raise InstructionError for an instruction, a name or a lease that cannot be used."""
        check_instruction(self.instruction)
        if self.lease_s and not MIN_LEASE_S <= self.lease_s <= MAX_LEASE_S:
            raise InstructionError(f"lease_s: 0 (none) or {MIN_LEASE_S:g} to {MAX_LEASE_S:g} seconds")
        if self.lease_s and not self.mission:
            raise InstructionError("lease_s: a mission without a name has no heartbeat")
        if self.mission and NAME.fullmatch(self.mission) is None:
            raise InstructionError("mission: 1 to 64 of A-Z a-z 0-9 _ . - make a name")
        if self.reply and (self.approve or self.dry_run or self.queue or self.lease_s):
            raise InstructionError("reply: a word has no options of its own; those of its mission hold")
        if self.step < 0 or (self.step and not self.reply):
            raise InstructionError("step: that of the question to which this is a reply, or 0")

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
        if key == "step":
            is_right, wanted = isinstance(value, int) and not isinstance(value, bool), "whole number"
        elif key == "lease_s":
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
    after its request should wait until it has as many. With `reply` it is about a word on what `mission`
    asks; `detail` then is the word that was taken.
    """

    state: AckState
    mission: str
    topic: str = "vlm/request"
    reason: str = ""
    detail: str = ""
    status: str = ""
    listeners: int = 0
    reply: bool = False

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


MAX_WAITING = 16
MAX_REMEMBERED = 256

Value = TypeVar("Value")


@dataclass(slots=True)
class MissionQueue:
    """The present job and the waiting ones. `prefix` begins the names that this process makes."""

    prefix: str
    current: MissionJob | None = None
    waiting: deque[MissionJob] = field(default_factory=deque)
    missions: int = 0
    _used: OrderedDict[str, MissionRequest | None] = field(default_factory=OrderedDict)
    _endings: OrderedDict[str, MissionStatus] = field(default_factory=OrderedDict)

    def new_job(self, request: MissionRequest) -> MissionJob:
        """Return a new job for a request. Raises InstructionError for a name that was used before."""
        self.missions += 1
        name = request.mission or f"{self.prefix}-{self.missions}"
        self._check_name(name)
        _remember(self._used, name, request)
        return MissionJob(name, check_instruction(request.instruction), request.approve, request.dry_run)

    def check(self, request: MissionRequest, *, waits: bool) -> None:
        """Raise InstructionError for a request that would be refused: a used name, or too many wait."""
        if not self.is_repeat(request):
            self._check_name(request.mission)
            if waits and self.current is not None:
                self._check_room()

    def _check_name(self, name: str) -> None:
        if name in self._used:
            raise InstructionError(f"mission {name!r} has been here before; a name is used once")

    def _check_room(self) -> None:
        if len(self.waiting) >= MAX_WAITING:
            raise InstructionError(f"{MAX_WAITING} missions wait already")

    def is_repeat(self, request: MissionRequest) -> bool:
        """Whether the same request, with the same name, was accepted before."""
        return bool(request.mission) and self._used.get(request.mission) == request

    def is_alive(self, mission: str) -> bool:
        """Whether a mission is in progress or waits."""
        return any(job.mission == mission for job in (self.current, *self.waiting) if job is not None)

    def end(self, status: MissionStatus) -> None:
        """Store the last status of a mission."""
        if status.mission:
            _remember(self._endings, status.mission, status)

    def end_status(self, mission: str) -> MissionStatus | None:
        """Return the last status of an ended mission; None if it has not ended, or ended long ago."""
        return self._endings.get(mission)

    def enqueue(self, job: MissionJob) -> None:
        """Append a job to the queue. Raises InstructionError if too many wait."""
        try:
            self._check_room()
        except InstructionError:
            self._used[job.mission] = None
            raise
        self.waiting.append(job)

    def withdraw(self, mission: str) -> MissionJob | None:
        """Remove a waiting job from the queue and return it; None if it does not wait.

        An unknown name counts as used from now on: its request may still arrive, after its withdrawal.
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


def _remember(values: OrderedDict[str, Value], name: str, value: Value) -> None:
    values[name] = value
    if len(values) > MAX_REMEMBERED:
        values.popitem(last=False)


LATE_S = 0.15
"""How late a check may be. If it is later, this process was not running and has yet to read the heartbeats
that arrived meanwhile, so the time does not count as silence."""


@dataclass(slots=True)
class MissionLeases:
    """The missions with a lease and the time of each one's last heartbeat, in seconds of one clock."""

    period_s: float
    """How often `expired` is called while there is a lease."""
    _silence_s: dict[str, float] = field(default_factory=dict)
    _received_s: dict[str, float] = field(default_factory=dict)
    _checked_s: float | None = None

    def begin(self, mission: str, silence_s: float, now_s: float) -> None:
        """Start a lease: it expires after `silence_s` without a heartbeat.

        0: the mission needs no heartbeat.
        """
        if silence_s > 0:
            if not self.is_any:
                # Nobody had to look until now.
                self._checked_s = now_s
            self._silence_s[mission], self._received_s[mission] = silence_s, now_s

    @property
    def is_any(self) -> bool:
        """Whether a mission has a lease."""
        return bool(self._received_s)

    def beat(self, mission: str, now_s: float) -> None:
        """Record a heartbeat; one for a mission without a lease is ignored."""
        if mission in self._received_s:
            self._received_s[mission] = now_s

    def end(self, mission: str) -> None:
        """Remove the lease of a mission that has ended."""
        self._silence_s.pop(mission, None)
        self._received_s.pop(mission, None)

    def expired(self, now_s: float) -> list[str]:
        """Return the missions whose clients have fallen silent, and remove their leases."""
        late_s = 0.0 if self._checked_s is None else now_s - self._checked_s - self.period_s
        self._checked_s = now_s
        if late_s > LATE_S:
            self._received_s = {mission: heard_s + late_s for mission, heard_s in self._received_s.items()}
        found = [m for m, heard_s in self._received_s.items() if now_s - heard_s > self._silence_s[m]]
        for mission in found:
            self.end(mission)
        return found
