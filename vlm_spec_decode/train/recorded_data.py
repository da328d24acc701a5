"""Training data from recorded walks: labels or answers about each frame. Independent of the simulator.

The folder is one of `train.frames`, with `talks.json` beside the frames: for each frame its instruction,
the actions before it, and the answer. Positions of objects are unknown, so such a folder trains no vision
tower, and its frames are not mirrored.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import ACTION_NAMES, Action, Look, Turn, action_numbers
from vlm_spec_decode.bags.events import Events, Topics
from vlm_spec_decode.bags.questions import AskPlan, Question, questions
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.core.errors import ActionParseError, ConfigError
from vlm_spec_decode.core.images import DECODED
from vlm_spec_decode.models.tiny import PATCHES_ACROSS
from vlm_spec_decode.train.frames import MAX_OBJECTS, Column, squash

ANGLE_GRID_DEG = 5
"""Grid of angles in degrees (metres are in tenths), and the largest values."""

MAX_ANGLE_DEG, MAX_DISTANCE_M = 180, 5.0


@dataclass(frozen=True, slots=True)
class RecordedDataConfig:
    """Bags and their topics; instructions with labels may come from a file (`plan`)."""

    bags: tuple[Path, ...]
    out: Path = Path("data/walks")
    topics: Topics = field(default_factory=Topics)
    plan: AskPlan = field(default_factory=AskPlan)


def run_recorded_data(config: RecordedDataConfig) -> dict[str, Any]:
    """Write the folder; return how many frames it holds. Raises BagError, or ConfigError without a label."""
    frames: list[npt.NDArray[np.uint8]] = []
    dialogues: list[dict[str, Any]] = []
    faults: Counter[str] = Counter()
    for bag in config.bags:
        source = open_bag(bag)
        try:
            events = Events(source, config.topics.choose(source.topics), faults)
            for question in questions(events, config.plan):
                if (answer := _answer(question, faults)) is not None:
                    frames.append(_pixels(question))
                    observation = question.observation
                    dialogues.append(
                        {
                            "instruction": observation.instruction,
                            "history": list(observation.history),
                            "answer": answer,
                        }
                    )
        finally:
            source.close()
    if not frames:
        raise ConfigError(
            f"no frame with a label in these bags ({dict(faults) or 'nothing wrong with them'})"
        )
    meta = _write(config.out, np.stack(frames), dialogues)
    return meta | {"faults": dict(faults)}


def _answer(question: Question, faults: Counter[str]) -> str | None:
    """Return the answer to learn: the label's text, or its actions alone."""
    if question.text:
        return question.text
    if question.actions is None:
        faults["a frame without a label"] += 1
        return None
    try:
        return spaced_text(parse_answer(" ".join(question.actions)))
    except ActionParseError as error:
        faults[f"a label that is no action: {error}"] += 1
        return None


def spaced_text(actions: Sequence[Action]) -> str:
    """Return actions in the tiny models' spaced form, with numbers on their grid."""
    return " ".join(["ok .", *(_call(action) for action in actions)])


def _call(action: Action) -> str:
    grid = isinstance(action, (Turn, Look))
    numbers = " , ".join(_number(value, grid) for value in action_numbers(action))
    return f"{ACTION_NAMES[type(action)]} ( {numbers} )" if numbers else f"{ACTION_NAMES[type(action)]} ( )"


def _number(value: float, is_angle: bool) -> str:
    if is_angle:
        bounded = max(-MAX_ANGLE_DEG, min(MAX_ANGLE_DEG, value))
        return str(ANGLE_GRID_DEG * round(bounded / ANGLE_GRID_DEG))
    return f"{max(-MAX_DISTANCE_M, min(MAX_DISTANCE_M, value)) + 0.0:.1f}"


def _pixels(question: Question) -> npt.NDArray[np.uint8]:
    image = question.observation.image
    assert image is not None, "a question from a bag shows a frame"
    return squash(np.asarray(DECODED.picture(image)))


def _write(folder: Path, frames: npt.NDArray[np.uint8], dialogues: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    count = len(frames)
    np.save(folder / "frames.npy", frames)
    np.save(folder / "patches.npy", np.full((count, PATCHES_ACROSS**2), -1, np.int8))
    np.save(folder / "objects.npy", np.full((count, MAX_OBJECTS, len(Column)), -1, np.float32))
    text = json.dumps(dialogues, indent=0)
    (folder / "talks.json").write_text(text + "\n", encoding="utf-8")
    digest = hashlib.sha256(frames.tobytes() + text.encode()).hexdigest()[:16]
    meta = {"digest": digest, "frames": count}
    (folder / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")
    return meta
