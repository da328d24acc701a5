"""What may be asked of the VLM node beyond a plain sentence: strict JSON on `vlm/request`. Knows no ROS."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.edge.mission import MAX_INSTRUCTION_CHARS, check_instruction

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a mission may be called by whoever asks for it."""

MAX_REQUEST_CHARS = 6 * MAX_INSTRUCTION_CHARS + 1000
"""Every character may be escaped."""


@dataclass(frozen=True, slots=True)
class Request:
    """One instruction and how it is to be carried out.

    `mission` names it, so that its sender knows it again; empty: the node names it. `approve` shows each plan
    and waits for a yes, `dry_run` shows what would be sent and sends nothing, `queue` waits for the mission
    under way instead of superseding it.
    """

    instruction: str
    mission: str = ""
    approve: bool = False
    dry_run: bool = False
    queue: bool = False

    def __post_init__(self) -> None:
        """Raise InstructionError for an instruction or a name that cannot be used."""
        check_instruction(self.instruction)
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
        for key, value in data.items():
            wanted = str if key in {"instruction", "mission"} else bool
            if not isinstance(value, wanted):
                raise InstructionError(f"request: {key} must be a {wanted.__name__}")
        return cls(**data)
