"""The engine as a port, and a connection to it that is made again after a loss.

Connects, and after a loss connects again, on a thread of its own, so that a mission that has lost its cloud
can continue, or wait and be cancelled, in the meantime. ROS-free.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.errors import CloudError, CloudUnreachable, ModelError, VsdError
from vlm_spec_decode.core.trace import GenerationResult, Tracer
from vlm_spec_decode.core.types import Image, Observation, Tokens
from vlm_spec_decode.edge.engine import DraftedAction, Engine
from vlm_spec_decode.edge.factory import DraftModel, EdgeRuntime, bring_up, run_manifest
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission.state import MissionStatus


class EdgeEngineSource:
    """Connects an edge engine, as often as `connect` is called. The draft model is loaded once.

    `watch` makes a tracer of all answers, from what turns token ids into text.
    """

    def __init__(
        self, settings: EdgeSettings, watch: Callable[[Callable[[Tokens], str]], Tracer] | None = None
    ) -> None:
        self._settings, self._watch = settings, watch
        self._runtime: EdgeRuntime | None = None
        self._model = DraftModel(settings)

    def connect(self) -> Engine:
        """Return an engine with a fresh handshake. Raises CloudError or ModelError.

        With several clouds, the one that it was connected to last is tried first.
        """
        self.close()
        self._runtime = bring_up(self._settings, self._model)
        if self._watch is not None:
            self._runtime.engine.trace_with(self._watch(self._runtime.draft.codec.decode))
        return self._runtime.engine

    def draft(self) -> Engine:
        """Return the draft alone as an engine. Raises ModelError."""
        return self._model.standalone_engine()

    @property
    def sees(self) -> bool:
        """Whether the models have a vision tower. Loads the draft if it is not loaded. Raises ModelError."""
        return self._model.load().sees

    def facts(self) -> str:
        """Return the settings and models that decide the engine's tokens, as JSON; "" without an engine."""
        return json.dumps(run_manifest(self._settings, self._runtime)) if self._runtime else ""

    def close(self) -> None:
        """Disconnect from the cloud. Idempotent."""
        if self._runtime is not None:
            self._settings = replace(self._settings, cloud=self._runtime.clouds)
            self._runtime.close()


class TextUpdate(Protocol):
    """What one commit added to an answer; `edge.engine.AnswerUpdate` is one."""

    @property
    def tokens(self) -> Tokens:
        """New tokens."""
        ...

    @property
    def text(self) -> str:
        """The whole answer so far."""
        ...

    @property
    def actions(self) -> tuple[Action, ...]:
        """New actions."""
        ...

    @property
    def result(self) -> GenerationResult | None:
        """The finished answer, with the last update."""
        ...

    @property
    def drafted(self) -> DraftedAction | None:
        """The first action as the draft has it, not committed; None unless a preview was asked for."""
        ...


class Answerer(Protocol):
    """Decodes one answer at a time; `edge.engine.Engine` is one."""

    def picture(self, data: bytes) -> Image:
        """Return a frame, an image file's bytes, as large as target and uplink allow. Raises ImageError."""
        ...

    def answer(self, observation: Observation, *, preview: bool = False) -> Iterator[TextUpdate]:
        """Yield an update per commit; with `preview` also what the draft says of the first action, if it can.

        Raises CloudError, ActionParseError, ImageError or Cancelled.
        """
        ...

    def cancel(self) -> None:
        """Abandon the answer in progress, from any thread."""
        ...


class EngineSource(Protocol):
    """Connects an engine, or raises one error that says why it cannot."""

    def connect(self) -> Answerer:
        """Return an engine whose cloud has welcomed it; may be called again after a loss.

        Raises CloudError, or ModelError if the draft cannot be loaded.
        """
        ...

    def draft(self) -> Answerer:
        """Return an engine that is the draft model alone, without a cloud. Raises ModelError."""
        ...

    def facts(self) -> str:
        """Return the settings and models that decide the engine's tokens, as JSON; "" without an engine."""
        ...

    def close(self) -> None:
        """Disconnect from the cloud. Idempotent."""
        ...


class OwnedEngine:
    """An engine that the caller made and closes. It reconnects to its cloud by itself, or not at all."""

    def __init__(self, engine: Answerer) -> None:
        self._engine = engine

    def connect(self) -> Answerer:
        """Return the engine."""
        return self._engine

    def draft(self) -> Answerer:
        """Raise ModelError: its draft model cannot be reached separately."""
        raise ModelError("draft_only needs an engine that the mission makes itself, as `vsd edge` does")

    def facts(self) -> str:
        """Return "": the owner knows the settings."""
        return ""

    def close(self) -> None:
        """Do nothing: the owner closes the engine."""


class Engines(Protocol):
    """Access to the present engine; `mission.connection.EngineConnection` is one."""

    @property
    def current(self) -> Answerer | None:
        """The engine that the cloud has welcomed, or None while there is no cloud."""
        ...

    def set_active(self, engine: Answerer | None) -> None:
        """Set the engine whose answer `cancel` ends."""
        ...

    def ensure(self) -> Answerer | None:
        """Return the engine, after one more attempt to reach the cloud if there is none."""
        ...

    def reconnect(self) -> None:
        """Drop the engine, whose cloud has failed, and start to connect again."""
        ...

    def draft(self) -> Answerer:
        """Return the draft model alone as an engine. Raises ModelError."""
        ...

    @property
    def error(self) -> VsdError:
        """Why there is no engine."""
        ...


RETRY_S = 3.0


class EngineConnection:
    """Owns the engine; implements `Engines`.

    All methods may be called from any thread; only `ensure` waits.
    """

    def __init__(
        self,
        source: EngineSource,
        report: Callable[[MissionStatus], None],
        on_failure: Callable[[VsdError], None],
        retry_s: float = RETRY_S,
    ) -> None:
        """`on_failure` gets errors that waiting does not fix: invalid settings, a model that cannot load."""
        self._source = source
        self._report = report
        self._on_failure = on_failure
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._engine: Answerer | None = None
        self._active: Answerer | None = None
        self._error: VsdError = CloudUnreachable("no connection")
        self._started = self._finished = 0
        self._connect_now = False
        self._closed = False
        self._reported = MissionStatus(state="connecting")
        self._thread = threading.Thread(target=self._maintain, name="connection", daemon=True)

    @property
    def current(self) -> Answerer | None:
        """The connected engine, or None while there is no cloud."""
        return self._engine

    @property
    def has_tried(self) -> bool:
        """Whether a first attempt to connect has ended, with or without success."""
        return self._finished > 0

    @property
    def error(self) -> VsdError:
        """Why there is no engine."""
        return self._error

    def start(self) -> None:
        """Start connecting."""
        self._report(self._reported)
        self._thread.start()

    def ensure(self) -> Answerer | None:
        """Return the engine; without one, wait for an attempt that begins after this call."""
        with self._changed:
            wanted = self._started + 1
            self._connect_now = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._engine or self._closed or self._finished >= wanted)
            return self._engine

    def reconnect(self) -> None:
        """Drop the engine and connect again at once."""
        with self._changed:
            self._engine, self._connect_now = None, True
            self._changed.notify_all()

    def draft(self) -> Answerer:
        """Return the draft model alone as an engine. Raises ModelError."""
        return self._source.draft()

    def set_active(self, engine: Answerer | None) -> None:
        """Set the engine whose answer `cancel` ends."""
        self._active = engine

    def cancel(self) -> None:
        """Cancel the answer of the engine that is in use."""
        engine = self._active
        if engine is not None:
            engine.cancel()

    def close(self, timeout_s: float) -> None:
        """Disconnect from the cloud; wait for the thread at most `timeout_s`. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._source.close()

    def _maintain(self) -> None:
        while not self._closed:
            if self._engine is None:
                self._connect()
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (self._engine is None and self._connect_now),
                    None if self._engine else self._retry_s,
                )

    def _connect(self) -> None:
        with self._changed:
            self._started += 1
            self._connect_now = False
        engine: Answerer | None = None
        try:
            engine = self._source.connect()
        except VsdError as error:
            self._error = error
            self._report_once(
                MissionStatus(state="unavailable", reason=type(error).__name__, detail=str(error))
            )
            if not isinstance(error, CloudError):
                self._on_failure(error)
        else:
            self._report_once(MissionStatus(state="ready"))
        with self._changed:
            self._engine = engine
            self._finished = self._started
            self._changed.notify_all()

    def _report_once(self, status: MissionStatus) -> None:
        if status != self._reported:
            self._reported = status
            self._report(status)
