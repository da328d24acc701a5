"""What decided the tokens of a run, as one JSON document, so that they can be made again from its bag.

Under the `coupled` rule an answer's tokens follow from the two models, these settings, and what was asked;
neither strategy nor link nor timing changes them.
"""

from __future__ import annotations

from typing import Any

from vlm_spec_decode import __version__
from vlm_spec_decode.core.config import digest
from vlm_spec_decode.edge.factory import EdgeRuntime
from vlm_spec_decode.edge.settings import EdgeSettings

SCHEMA = "vsd.run/1"
DECISIVE = ("strategy", "rule", "objective", "temperature", "seed", "max_tokens", "draft_length", "grammar")


def run_facts(settings: EdgeSettings, runtime: EdgeRuntime) -> dict[str, Any]:
    """Return settings with their digest, and names and digests of both models."""
    decisive = {name: getattr(settings, name) for name in DECISIVE}
    target_id, target_revision = runtime.target
    draft = runtime.draft.card
    return {
        "schema": SCHEMA,
        "version": __version__,
        "settings": decisive,
        "config_digest": digest(decisive),
        "target": {"model_id": target_id, "revision": target_revision},
        "draft": {"model_id": draft.model_id, "revision": draft.revision},
    }
