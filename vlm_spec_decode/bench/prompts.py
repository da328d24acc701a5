"""The recorded questions of the benchmark: frames from held-out rooms, so that no renderer is needed.

An observation's `frame_id` names its question; models of a pair are opened by it.
"""

from __future__ import annotations

import json
from pathlib import Path

from vlm_spec_decode.core.assets import ASSETS
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import Image, Observation

FOLDER = ASSETS / "prompts"
SEEN, TOLD = "prompts.json", "told.json"
"""Questions about a frame, and about a room told in words."""


def recorded_prompts(count: int, kind: str = SEEN, folder: Path = FOLDER) -> tuple[Observation, ...]:
    """Return the first `count` questions of a kind. Raises ConfigError if there are not so many."""
    try:
        rows = json.loads((folder / kind).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no recorded questions in {folder}: {error.strerror}") from error
    if not 0 < count <= len(rows):
        raise ConfigError(f"{count} answers are wanted; there are {len(rows)} recorded questions")
    found = []
    for number, row in enumerate(rows[:count]):
        image = None
        if "file" in row:
            image = Image((folder / row["file"]).read_bytes(), row["width"], row["height"])
        history = tuple(row["history"])
        found.append(Observation(image, row["instruction"], history, frame_id=f"{kind} {number}"))
    return tuple(found)
