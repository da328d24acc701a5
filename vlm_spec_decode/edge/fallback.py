"""Decoding by the draft alone, for a robot that has lost its cloud: its answers are not verified.

The caller must mark every plan made from them as unverified; reduced limits then apply.
"""

from __future__ import annotations

import threading

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import load_draft, sampling_of
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.model import VlmModel

STRATEGY = "autoregressive"


class DraftModel:
    """The draft of some settings, loaded at its first use and kept whatever becomes of the cloud."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._model: VlmModel | None = None
        self._loading = threading.Lock()

    def load(self) -> VlmModel:
        """Return the model. Raises ModelError if it cannot be loaded."""
        with self._loading:
            self._model = self._model or load_draft(self._settings)
            return self._model

    def alone(self) -> Engine:
        """Return an engine in which the draft is its own target. Raises ModelError."""
        draft, settings, clock = self.load(), self._settings, WallClock()
        alone = constrained(draft, draft.codec, language(settings.grammar))
        config = EngineConfig(
            strategy=STRATEGY, params=sampling_of(settings, draft), timeout_s=settings.answer_timeout_s
        )
        return Engine(None, draft.codec, LocalVerifier(alone, clock), clock, config)
