"""What a replay asks, and what is known to be right; and instructions from a file. `bag.asker` finds them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.errors import ActionParseError, BagError
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.core.yaml_file import read_yaml
from vlm_spec_decode.edge.mission import check_instruction


@dataclass(frozen=True, slots=True)
class Executed:
    """Motion after a frame, summed up: metres forward and left, degrees to the left."""

    forward_m: float = 0.0
    left_m: float = 0.0
    turn_deg: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """One (frame, instruction) and its labels, any of which may be missing.

    `actions` are what would have been right; `said` is such an answer in words, if somebody gave one.
    """

    number: int
    at_s: float
    observation: Observation
    actions: tuple[str, ...] | None = None
    said: str = ""
    token_ids: tuple[int, ...] = ()
    executed: Executed | None = None


@dataclass(frozen=True, slots=True)
class Spoken:
    """An instruction from a file: from `at_s` on (seconds after the bag's start), with a person's label."""

    at_s: float
    instruction: str
    actions: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AskPlan:
    """What is asked. `instruction` holds from the start; `every_s` is between two frames."""

    instruction: str = ""
    spoken: tuple[Spoken, ...] = ()
    every_s: float = 1.0
    horizon_s: float = 2.0
    limit: int = 0

    def __post_init__(self) -> None:
        """Raise InstructionError for an instruction that is given and cannot be one."""
        if self.instruction:
            check_instruction(self.instruction)


def read_spoken(path: Path) -> tuple[Spoken, ...]:
    """Read instructions from CSV (`time_s,instruction[,actions]`) or a YAML list of the same keys.

    An entry without actions has no label. Raises BagError naming the line.
    """
    rows: Any
    if path.suffix in (".yaml", ".yml"):
        rows = read_yaml(path, BagError)
    else:
        try:
            rows = csv.DictReader(
                path.read_text(encoding="utf-8-sig").splitlines()
            )  # sheets begin with a mark
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BagError(f"{path}: {error}") from error
    if not isinstance(rows, (list, csv.DictReader)):
        raise BagError(f"{path}: not a list of instructions")
    found = []
    for number, row in enumerate(rows, 1):
        try:
            label = row.get("actions") or ""
            text = " ".join(map(str, label)) if isinstance(label, list) else str(label)
            actions = _actions(text) if text.strip() else None
            found.append(Spoken(float(row["time_s"]), str(row["instruction"]).strip(), actions))
        except (KeyError, TypeError, ValueError, AttributeError, ActionParseError) as error:
            raise BagError(f"{path}: entry {number}: {type(error).__name__}: {error}") from error
    return tuple(sorted(found, key=lambda spoken: spoken.at_s))


def _actions(text: str) -> tuple[str, ...]:
    return tuple(format_action(action) for action in parse_answer(text))
