"""What a bag says about the run it comes from: the settings and models that decided its tokens.

Written by `edge.facts` on the topic `vlm/run`, repeated in metadata.yaml. Reading one and choosing what
holds for a replay is all that happens here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_spec_decode.bag.source import BagSource
from vlm_spec_decode.core.types import SamplingParams

TOPIC, STRING = "vlm/run", "std_msgs/msg/String"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Settings of the run and digests of its models; all empty where the bag does not say."""

    settings: Mapping[str, Any]
    target: str = ""
    draft: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is asked for by hand; None: as recorded, else as `FALLBACK` has it."""

    rule: str | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    draft_length: int | None = None


FALLBACK: Mapping[str, Any] = {
    "rule": "coupled",
    "temperature": 0.0,
    "seed": 0,
    "max_tokens": 96,
    "draft_length": 6,
    "grammar": True,
}


def recorded(source: BagSource) -> Recorded:
    """Return what the bag says, as it was when its first answer was given."""
    topics = [t for t, k in source.topics.items() if k == STRING and t.endswith(TOPIC)]
    for record in source.records(topics):
        message = source.message(record)
        if message is not None:
            return _read(str(message.data))
    return Recorded({})


def _read(text: str) -> Recorded:
    try:
        said = json.loads(text)
        settings = {key: said["settings"][key] for key in FALLBACK if key in said["settings"]}
        models = [str(said[role]["revision"]) for role in ("target", "draft")]
    except (ValueError, KeyError, TypeError):
        return Recorded({})
    return Recorded(settings, *models)


def settle(chosen: Chosen, found: Recorded) -> dict[str, Any]:
    """Return the settings that hold: what is asked for, else what was recorded, else the defaults."""
    by_hand = {key: getattr(chosen, key) for key in FALLBACK if getattr(chosen, key, None) is not None}
    return {**FALLBACK, **found.settings, **by_hand}


def sampling(settings: Mapping[str, Any], stop_ids: tuple[int, ...]) -> SamplingParams:
    """Return how tokens are chosen. Raises ValueError for settings that do not hold."""
    names = ("rule", "temperature", "seed", "max_tokens")
    return SamplingParams(stop_ids=stop_ids, **{name: settings[name] for name in names})
