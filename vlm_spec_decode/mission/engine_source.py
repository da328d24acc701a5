"""An engine that is made from settings, as often as a mission needs one."""

from __future__ import annotations

import json
from dataclasses import replace

from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.factory import DraftModel, EdgeRuntime, bring_up, run_facts
from vlm_spec_decode.edge.settings import EdgeSettings


class EdgeEngineSource:
    """Brings the engine up as often as asked; the draft is loaded once."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._runtime: EdgeRuntime | None = None
        self._model = DraftModel(settings)

    def connect(self) -> Engine:
        """Return an engine with a fresh handshake. Raises CloudError or ModelError.

        Of several clouds the one that it spoke with last is asked first.
        """
        self.close()
        self._runtime = bring_up(self._settings, self._model.load())
        return self._runtime.engine

    def draft(self) -> Engine:
        """Return the draft alone as an engine. Raises ModelError."""
        return self._model.alone()

    def facts(self) -> str:
        """Return the JSON of what decides the tokens of the engine that is up; "" without one."""
        return json.dumps(run_facts(self._settings, self._runtime)) if self._runtime else ""

    def close(self) -> None:
        """Leave the cloud. Idempotent."""
        if self._runtime is not None:
            self._settings = replace(self._settings, cloud=self._runtime.clouds)
            self._runtime.close()
