"""The recorded questions of the benchmark: frames from held-out rooms, so that no renderer is needed.

An observation's `frame_id` names its question; models of a pair are opened by it.
"""

from __future__ import annotations

import json
from pathlib import Path

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import Image, Observation

FOLDER = Path(__file__).parents[1] / "assets" / "prompts"


def recorded_prompts(count: int, folder: Path = FOLDER) -> tuple[Observation, ...]:
    """Return the first `count` questions. Raises ConfigError if there are not so many."""
    try:
        rows = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no recorded questions in {folder}: {error.strerror}") from error
    if not 0 < count <= len(rows):
        raise ConfigError(f"{count} answers are wanted; there are {len(rows)} recorded questions")
    found = []
    for number, row in enumerate(rows[:count]):
        image = Image((folder / row["file"]).read_bytes(), row["width"], row["height"])
        history = tuple(row["history"])
        found.append(Observation(image, row["instruction"], history, frame_id=f"question {number}"))
    return tuple(found)
