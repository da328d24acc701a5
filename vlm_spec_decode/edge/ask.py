"""One answer without robot or ROS: what there is to see, as an image file or in words, and an instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_spec_decode.actions.parser import actions_until_error
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, UsageError
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.api import Engine
from vlm_spec_decode.edge.factory import check_settings
from vlm_spec_decode.edge.image_upload import load_image
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.prompt import with_scene
from vlm_spec_decode.transport.address import wait_for_listener

TEXT_DRAFT, TEXT_TARGET = "shipped:text_draft", "shipped:text_target"
"""The language-only pair that ships."""

NOTHING_SEEN = (
    "the models have a vision tower and nothing to see: name an --image, or describe the scene in words with "
    "--scene-text, which asks the language-only pair"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskConfig:
    """The question, and the models or cloud that answer it.

    `scene_text` describes the view for the settings' language-only pair, else for the shipped one.
    """

    instruction: str
    image: Path | None = None
    scene_text: str = ""
    history: tuple[str, ...] = ()
    settings: EdgeSettings = field(default_factory=EdgeSettings)


NOT_UNDERSTOOD = "i do not know what that means"
"""What the shipped models answer to words that they do not know, with `done()` and no motion."""


def run(config: AskConfig, on_text: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Ask once; `on_text` gets each new piece of the answer. Returns the fields of `vsd ask --json`.

    Raises UsageError for an image and a scene in words at once, or for neither where the models see, and
    what `Engine.connect` raises. What needs no model is checked before one is loaded.
    """
    instruction, settings = check_instruction(config.instruction), config.settings
    for action in config.history:
        check_instruction(action)
    if config.scene_text:
        if config.image:
            raise ConfigError("an image and a scene in words: a pair either sees or is told")
        settings = replace(
            settings, draft=settings.draft or TEXT_DRAFT, target=settings.target or TEXT_TARGET
        )
        instruction = check_instruction(with_scene(config.scene_text, instruction))
    if config.image:
        load_image(config.image)  # what is no picture is named before a model is loaded
    check_settings(settings)
    if settings.cloud:
        # Before anything else is missed: a cloud that is not there is the first thing to mend.
        wait_for_listener(settings.cloud, settings.refused_s, WallClock())
    is_blind = config.image is None and not config.scene_text
    if is_blind and not (settings.draft or settings.target):
        raise UsageError(NOTHING_SEEN)
    with Engine.from_settings(settings) as engine:
        if is_blind and engine.sees:
            raise UsageError(NOTHING_SEEN)
        image = engine.picture(config.image) if config.image else None
        actions: list[str] = []
        observation, name = Observation(image, instruction, config.history), str(config.image or "")
        # Without a grammar an answer need not be of the action language, so no text of it is an error.
        is_free = not settings.grammar
        for update in engine.answer(observation, free_text=is_free, image_name=name):
            actions += [format_action(action) for action in update.actions]
            if on_text:
                on_text(update.new_text)
            if update.result and is_free:
                actions = [format_action(action) for action in actions_until_error(update.result.text)[0]]
            if update.result:
                return {**result_fields(update.result), "actions": actions}
    raise RuntimeError("the answer ended without a result")


def why_not_actionable(found: Mapping[str, Any]) -> str:
    """Return why a robot could not act on the answer; "" if it could."""
    if not found["actions"]:
        return "the answer holds no action that a robot could carry out"
    if NOT_UNDERSTOOD in str(found["answer"]).lower() and found["actions"] == ["done()"]:
        return "the model does not understand the instruction"
    return ""


def result_fields(result: GenerationResult) -> dict[str, Any]:
    """Return one answer's figures under the field names of `vsd ask --json`."""
    return {
        "answer": result.text,
        "token_ids": list(result.tokens),
        "strategy": result.strategy,
        "rule": result.rule,
        "rounds": len(result.rounds),
        "drafted": result.drafted,
        "accepted": result.accepted,
        "target_passes": result.target_passes,
        "early_verdicts": result.early_verdicts,
        "time_to_first_token_s": result.time_to_first_token_s,
        "time_to_first_action_s": result.time_to_first_action_s,
        "total_s": result.total_s,
        "uplink_bytes": result.usage.uplink_bytes,
        "downlink_bytes": result.usage.downlink_bytes,
        "image_bytes": result.usage.image_bytes,
    }
