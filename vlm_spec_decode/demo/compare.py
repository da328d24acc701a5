"""Decodes a mission's answers again with another strategy, about the same frames and histories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.demo.mission_log import MissionStep
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.image_upload import for_uplink
from vlm_spec_decode.edge.settings import EdgeSettings

STRATEGY = "autoregressive"


def decode_again(
    settings: EdgeSettings, instruction: str, steps: Iterable[MissionStep], frames: Mapping[float, Image]
) -> dict[int, dict[str, Any]]:
    """Return, by step, the figures of `STRATEGY`'s answer under the names of `/vlm/trace`, and `token_ids`.

    A step whose frame was not seen is left out. Raises CloudError or ModelError.
    """
    runtime = bring_up(replace(settings, strategy=STRATEGY))
    try:
        return {
            step.number: _figures(
                _decode(runtime.engine, _observation(step, instruction, frames[step.stamp_s]))
            )
            for step in steps
            if step.stamp_s in frames and step.token_ids
        }
    finally:
        runtime.close()


def _observation(step: MissionStep, instruction: str, image: Image) -> Observation:
    # The node makes frames small in the same way before they go up, so the cloud knows this image already.
    return Observation(for_uplink(image.jpeg), instruction, step.history, step.stamp_s)


def _decode(engine: Engine, observation: Observation) -> GenerationResult:
    *_, last = engine.answer(observation)
    if last.result is None:
        raise RuntimeError("the answer ended without a result")
    return last.result


def _figures(result: GenerationResult) -> dict[str, Any]:
    return {
        "token_ids": list(result.tokens),
        "tokens": len(result.tokens),
        "target_passes": result.target_passes,
        "drafted": result.drafted,
        "accepted": result.accepted,
        "total_s": result.total_s,
        "uplink_bytes": result.usage.uplink_bytes,
        "downlink_bytes": result.usage.downlink_bytes,
        "image_bytes": result.usage.image_bytes,
    }
