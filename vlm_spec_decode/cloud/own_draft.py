"""Whether the cloud keeps a copy of the draft beside its target: `vsd cloud --draft auto`, the default.

A copy is kept if it fits, its weights and as much again for its caches into the memory that is free beside
the answers' caches, and if it helps: with drafts as good as those of a good pair a token must cost less than
a step of the target, by what one step of either takes, measured here (`DraftCosts.gain`). How much it is used
is decided pass by pass from what each answer accepts (`strategies.hybrid.self_draft`), so that a weak draft
costs its memory and hardly any time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.cloud.config import DRAFT_AUTO, DRAFT_NONE, CloudConfig
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import VocabularyMismatch
from vlm_spec_decode.core.ports import Clock, Model
from vlm_spec_decode.core.profiles import load_hardware
from vlm_spec_decode.decoding.policy import DraftCosts
from vlm_spec_decode.models.engines.base import LoadedModel, LoadOptions
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.hardware import free_bytes
from vlm_spec_decode.models.loader import (
    check_pair,
    load_draft_and_target,
    load_draft_for,
    load_model,
    shipped,
)
from vlm_spec_decode.models.paced import pass_seconds, profile_costs
from vlm_spec_decode.models.spec import ModelSpec, parse_spec

GOOD_ACCEPTANCE, LEAST_GAIN = 0.9, 1.1
"""A copy helps if drafts of this acceptance make a token this much cheaper."""

ROOM = 2.0
"""Bytes that a copy needs for each byte of its weights: its caches and its pass."""

TOKENS = 4
"""Drafted tokens of the pass that is timed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OwnDraft:
    """The copy, if one is kept, what steps take here, and why it is kept or not."""

    model: Model | None
    costs: DraftCosts | None
    reason: str


def load_target(config: CloudConfig) -> tuple[LoadedModel, LoadedModel | None]:
    """Load the target, and beside it the copy of the draft if the config names one. Raises ModelError."""
    target = _target(config)
    if config.draft in ("", DRAFT_NONE, DRAFT_AUTO):
        return load_model(target, threads=config.threads, role="target"), None
    draft, found = load_draft_and_target(_source(config, config.draft), target, threads=config.threads)
    return found, draft


def check_draft(config: CloudConfig) -> None:
    """Compare a draft that the config names with its target, without weights.

    Raises VocabularyMismatch or ModelError. On a cluster only the replicas' nodes have the folders.
    """
    if config.draft not in ("", DRAFT_NONE, DRAFT_AUTO) and not config.ray_address:
        check_pair(_source(config, config.draft), _target(config))


def own_draft(config: CloudConfig, target: LoadedModel, named: LoadedModel | None = None) -> OwnDraft:
    """Take the copy that the config names, `named` if it is loaded already, or decide.

    Raises ModelError for one that is named.
    """
    if config.draft in ("", DRAFT_NONE):
        return OwnDraft(None, None, "none is wanted")
    if config.draft == DRAFT_AUTO:
        found = _decide(config, target)
    else:
        found = _measured(config, target, named or _load(config, target, config.draft))
    log.info("a draft beside the target: %s", found.reason)
    return found


def _decide(config: CloudConfig, target: LoadedModel) -> OwnDraft:
    folder = shipped("draft")
    free = free_bytes(config.device)
    needed = int(ROOM * weights_bytes(folder))
    if not fits(needed, free, config.kv_mib << 20):
        return OwnDraft(None, None, _no_room(needed, free))
    try:
        found = _measured(config, target, _load(config, target, "shipped"))
    except VocabularyMismatch:
        return OwnDraft(
            None, None, "no: the one that ships has another vocabulary; --draft names another one"
        )
    assert found.costs is not None
    gain = found.costs.gain(GOOD_ACCEPTANCE)
    if not helps(found.costs):
        return OwnDraft(None, found.costs, f"no: at best {gain:.2f} times the target's own speed")
    return OwnDraft(found.model, found.costs, f"yes: up to {gain:.2f} times the target's own speed")


def _no_room(needed: int, free: int | None) -> str:
    return f"no: {needed >> 20} MiB beside the answers' caches do not fit into {(free or 0) >> 20} MiB"


def _target(config: CloudConfig) -> ModelSpec:
    options = LoadOptions(
        config.revision,
        config.dtype,
        config.device,
        engine=config.engine,
        tensor_parallel=config.tensor_parallel,
        kv_mib=config.kv_mib,
        answers=config.max_sessions,
    )
    return parse_spec(config.model or shipped("target"), options)


def _source(config: CloudConfig, name: str) -> ModelSpec:
    options = LoadOptions(dtype=config.dtype, device=config.device)
    return parse_spec(shipped("draft") if name == "shipped" else name, options)


def _load(config: CloudConfig, target: LoadedModel, name: str) -> LoadedModel:
    return load_draft_for(target.card, _source(config, name), threads=config.threads)


def _measured(config: CloudConfig, target: LoadedModel, draft: LoadedModel) -> OwnDraft:
    model = constrained(draft, draft.codec, config.language, chats=True)
    # What the profile says and not what this machine takes: it decides on the copy and paces it.
    costs = (
        profile_costs(load_hardware(config.profile))
        if config.profile
        else measured(draft, target, WallClock())
    )
    return OwnDraft(model, costs, "yes: it is named")


def fits(needed: int, free: int | None, caches: int) -> bool:
    """Tell whether `needed` bytes are free beside the answers' caches; unknown memory is taken to do."""
    return free is None or needed + caches <= free


def helps(costs: DraftCosts) -> bool:
    """Tell whether good drafts would make a token cheaper than the target's own step by enough."""
    return costs.gain(GOOD_ACCEPTANCE) >= LEAST_GAIN


def weights_bytes(folder: Path) -> int:
    """Return the bytes of a checkpoint's weights on the disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def measured(draft: Model, target: Model, clock: Clock) -> DraftCosts:
    """Time a step of the draft, one of the target, and a pass of the target over a few drafted tokens."""
    return DraftCosts(*pass_seconds(draft, clock, 0), *pass_seconds(target, clock, 0, TOKENS))
