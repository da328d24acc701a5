"""Keeps an engine at hand: connects, and after a loss connects again by itself, on a thread of its own.

So that a mission which has lost its cloud can go on, or wait and be cancelled, while it is being looked for.
ROS-free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from vlm_spec_decode.bridge.ports import Answerer, EngineSource
from vlm_spec_decode.bridge.reports import MissionStatus
from vlm_spec_decode.core.errors import CloudError, CloudUnreachable, VsdError

RETRY_S = 3.0


class EngineKeeper:
    """Owns the engine; implements `Engines`. All may be called from any thread; only `ensure` waits."""

    def __init__(
        self,
        source: EngineSource,
        say: Callable[[MissionStatus], None],
        on_failure: Callable[[VsdError], None],
        retry_s: float = RETRY_S,
    ) -> None:
        """`on_failure` is told of what waiting cannot mend: settings or a model that do not hold."""
        self._source = source
        self._say = say
        self._on_failure = on_failure
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._engine: Answerer | None = None
        self._used: Answerer | None = None
        self._error: VsdError = CloudUnreachable("no connection")
        self._started = self._finished = 0
        self._hurry = False
        self._closed = False
        self._said = MissionStatus("connecting")
        self._thread = threading.Thread(target=self._keep, name="connection", daemon=True)

    @property
    def current(self) -> Answerer | None:
        """The engine that the cloud has welcomed and not failed since."""
        return self._engine

    @property
    def has_tried(self) -> bool:
        """Whether a first attempt has ended, well or not."""
        return self._finished > 0

    @property
    def error(self) -> VsdError:
        """Why there is no engine."""
        return self._error

    def start(self) -> None:
        """Start connecting."""
        self._say(self._said)
        self._thread.start()

    def ensure(self) -> Answerer | None:
        """Return the engine; without one, wait for an attempt that begins after this call."""
        with self._changed:
            wanted = self._started + 1
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._engine or self._closed or self._finished >= wanted)
            return self._engine

    def lost(self) -> None:
        """Give the engine up and look for it again at once."""
        with self._changed:
            self._engine, self._hurry = None, True
            self._changed.notify_all()

    def draft(self) -> Answerer:
        """Return the draft model alone as an engine. Raises ModelError."""
        return self._source.draft()

    def use(self, engine: Answerer | None) -> None:
        """Name the engine that `cancel` is to reach."""
        self._used = engine

    def cancel(self) -> None:
        """Let the engine in use drop its answer."""
        engine = self._used
        if engine is not None:
            engine.cancel()

    def close(self, timeout_s: float) -> None:
        """Leave the cloud; wait for the thread at most `timeout_s`. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._source.close()

    def _keep(self) -> None:
        while not self._closed:
            if self._engine is None:
                self._connect()
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (self._engine is None and self._hurry),
                    None if self._engine else self._retry_s,
                )

    def _connect(self) -> None:
        with self._changed:
            self._started += 1
            self._hurry = False
        engine: Answerer | None = None
        try:
            engine = self._source.connect()
        except VsdError as error:
            self._error = error
            self._say_once(MissionStatus("unavailable", reason=type(error).__name__, detail=str(error)))
            if not isinstance(error, CloudError):
                self._on_failure(error)
        else:
            self._say_once(MissionStatus("ready"))
        with self._changed:
            self._engine = engine
            self._finished = self._started
            self._changed.notify_all()

    def _say_once(self, status: MissionStatus) -> None:
        if status != self._said:
            self._said = status
            self._say(status)
