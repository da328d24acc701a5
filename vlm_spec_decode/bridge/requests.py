"""What may be asked of the VLM node beyond a plain sentence, and how it answers at once. Knows no ROS.

A request is strict JSON on `vlm/request`; the node says on `vlm/ack` what became of it. A request with a
lease lives only as long as its asker is heard on `vlm/heartbeat`, so that no robot walks on without him.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.edge.mission import MAX_INSTRUCTION_CHARS, check_instruction

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a mission may be called by whoever asks for it."""

MIN_LEASE_S, MAX_LEASE_S = 0.2, 60.0
"""Shorter than the first, and a moment in which the computer is busy would end a mission."""

MAX_REQUEST_CHARS = 6 * MAX_INSTRUCTION_CHARS + 1000
"""Every character may be escaped."""


@dataclass(frozen=True, slots=True)
class Request:
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
    def from_json(cls, text: str) -> Request:
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


@dataclass(frozen=True, slots=True)
class Ack:
    """What the VLM node says on `vlm/ack` as soon as it has heard a request, an instruction or a heartbeat.

    `taken`: it is or was the node's mission (`topic` says where it came from); said again for a request that
    comes again. `refused`: it will not be carried out, with reason and detail. `over`: a heartbeat came for
    a mission that has ended, or was never there; `status` then is how it ended (`failed` if unknown).
    `listeners` is how many subscribers of `topic` the node knows, itself among them: whoever asks and leaves
    should wait until that many have heard him.
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
