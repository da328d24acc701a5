"""Questions from an event loop to an engine, whose answers are decoded in threads.

At most `answers` are decoded at a time, which is what an engine has open; further ones wait, up to
`concurrency` in all. Who leaves cancels its answer, here and in the cloud. When the cloud is lost the engine
is connected again on a thread of its own (`mission.connection`); meanwhile questions fail at once, or the
draft answers them alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import cast

from vlm_spec_decode.core.errors import Cancelled, CloudUnreachable, VsdError
from vlm_spec_decode.core.trace import RoundTrace
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.engine import AnswerUpdate, DecodedAnswer, Engine, EngineConfig
from vlm_spec_decode.mission.connection import EngineConnection, EngineSource
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.serve.openai_api.errors import RETRY_S, busy
from vlm_spec_decode.serve.openai_api.settings import ServeSettings

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often an answer that waits looks whether its client and its engine are still there."""

MAX_ENGINES = 2
"""Engines with their target that one answer is tried with. Each may take `link_silence_s` to be lost."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A question as an engine takes it, and how many tokens its text has."""

    observation: Observation
    config: EngineConfig
    prompt_tokens: int


Prepare = Callable[[Engine], PreparedRequest]
"""Makes a question ready for an engine, in the thread that decodes it. Raises VsdError or ApiError."""


class RunningAnswer:
    """One answer on its way to the event loop. `is_verified`: the target decides it, not the draft alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_verified = True
        self.prepared: PreparedRequest | None = None
        self.is_cancelled = False
        self._loop = loop
        self._answer: DecodedAnswer | None = None
        self._updates: asyncio.Queue[AnswerUpdate | BaseException] = asyncio.Queue()

    @property
    def rounds(self) -> tuple[RoundTrace, ...]:
        """The commits so far."""
        return self._answer.rounds if self._answer else ()

    async def next(self) -> AnswerUpdate:
        """Return the next update; the last one has the result. Raises what ends the answer."""
        found = await self._updates.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def cancel(self) -> None:
        """End the answer, here and in the cloud. Of one that has ended it is nothing."""
        self.is_cancelled = True
        if self._answer is not None:
            self._answer.cancel()

    # In the thread that decodes it -------------------------------------------------------------------

    def decode(self, engine: Engine, prepare: Prepare) -> None:
        """Decode the whole answer. Raises what ends it."""
        self.check()
        prepared = self.prepared = prepare(engine)
        answer = self._answer = engine.answer(prepared.observation, prepared.config)
        try:
            self.check()
            for update in answer:
                self.put(update)
        finally:
            answer.close()

    @property
    def has_begun(self) -> bool:
        """Whether something of it was handed over."""
        return bool(self.rounds)

    def put(self, item: AnswerUpdate | BaseException) -> None:
        """Hand something over to the event loop; one that has ended wants nothing."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._updates.put_nowait, item)

    def check(self) -> None:
        """Raise Cancelled if nobody waits for it any more."""
        if self.is_cancelled:
            raise Cancelled("the client has left")


class EngineTurns:
    """Lets the answers of one engine run at a time, and those of others wait their turn, in order.

    Engines share the draft model, which one thread at a time may run, and each orders its own threads only.
    There are two around a lost cloud: the one that is given up and the new one, or the draft alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: list[Engine] = []
        self._waiting: list[list[Engine]] = []

    @contextmanager
    def of(self, engine: Engine, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Run an answer of an engine in this block. What `check` raises ends the wait for its turn."""
        mine = [engine]
        with self._changed:
            self._waiting.append(mine)
            try:
                check()
                while not self._changed.wait_for(lambda: self._may_run(mine), LOOK_S):
                    check()
                self._running.append(engine)
            finally:
                self._waiting = [each for each in self._waiting if each is not mine]
                self._changed.notify_all()  # who was behind one that leaves may be next
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(engine)
                self._changed.notify_all()

    def _may_run(self, mine: list[Engine]) -> bool:
        """Whether neither who runs nor who has waited for longer is of another engine."""
        position = next(n for n, each in enumerate(self._waiting) if each is mine)
        ahead = [*self._running, *(engine for (engine,) in self._waiting[:position])]
        return all(engine is mine[0] for engine in ahead)


class AnswerService:
    """Answers questions with the engine of a source. Made anywhere; `ask` is for one event loop."""

    def __init__(
        self,
        source: EngineSource,
        settings: ServeSettings,
        report: Callable[[MissionStatus], None] | None = None,
    ) -> None:
        self._settings = settings
        self._failure: VsdError | None = None
        self._connection = EngineConnection(source, report or (lambda _status: None), self._on_failure)
        self._source = source
        self._turns = EngineTurns()
        self._draft: Engine | None = None
        self._draft_lock = threading.Lock()
        self._executor = ThreadPoolExecutor(settings.answers, "vsd-answer")
        self._slots: asyncio.Semaphore | None = None
        self.under_way = 0
        self.decoding = 0

    @property
    def engine(self) -> object:
        """The engine with its target, None without; another one after every connection."""
        return self._connection.current

    @property
    def is_connected(self) -> bool:
        """Whether there is an engine with its target, and that was heard lately."""
        engine = cast("Engine | None", self._connection.current)
        return engine is not None and engine.is_reachable

    def check(self) -> bool:
        """Return `is_connected`; a cloud that was lost while nobody asked is connected again."""
        if self._connection.current is None or self.is_connected:
            return self.is_connected
        if not self.decoding:  # who asks it now finds out, and connects again
            self._connection.reconnect()
        return False

    @property
    def facts(self) -> str:
        """Settings and models that decide the tokens, as JSON; "" before the first connection."""
        return self._source.facts()

    def start(self) -> None:
        """Connect the engine, and wait for the first attempt. Raises what waiting does not mend."""
        self._connection.start()
        self._connection.ensure()
        if self._failure is not None:
            self.close()
            raise self._failure

    def check_answers(self) -> None:
        """Raise CloudUnreachable while nobody answers: there is no cloud, and the draft may not alone."""
        if self._connection.current is None and self._settings.fallback != "draft":
            raise CloudUnreachable(self.why_away())

    def why_away(self) -> str:
        """Return why there is no engine."""
        return str(self._connection.error)

    def close(self) -> None:
        """End all answers and the connection."""
        if (engine := self._connection.current) is not None:
            engine.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._connection.close(5.0)
        self._executor.shutdown(wait=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Have one request under way in this block. Raises ApiError (429) if too many are."""
        if self.under_way >= self._settings.concurrency:
            raise busy(self.under_way, RETRY_S)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    @asynccontextmanager
    async def ask(self, prepare: Prepare) -> AsyncIterator[RunningAnswer]:
        """Ask in this block, whose end ends the answer. For a request that has a `place`."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._settings.answers)
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        answer = RunningAnswer(loop)
        self.decoding += 1
        loop.run_in_executor(self._executor, self._run, answer, prepare).add_done_callback(self._on_end)
        try:
            yield answer
        finally:
            answer.cancel()

    def _on_end(self, _done: asyncio.Future[None]) -> None:
        """Let the next one begin: only now has the engine room again."""
        assert self._slots is not None
        self.decoding -= 1
        self._slots.release()

    def _on_failure(self, error: VsdError) -> None:
        self._failure = error

    # In the threads ----------------------------------------------------------------------------------

    def _run(self, answer: RunningAnswer, prepare: Prepare) -> None:
        try:
            self._decode(answer, prepare)
        except BaseException as error:  # noqa: BLE001 - raised again in the task that reads the answer
            answer.put(error)

    def _decode(self, answer: RunningAnswer, prepare: Prepare) -> None:
        """Decode an answer. One that loses its engine before it began goes on with the next, if there is one.

        Without one the draft answers, or CloudUnreachable says why not.
        """
        lost: CloudUnreachable | None = None
        for _ in range(MAX_ENGINES):
            engine = cast("Engine | None", self._connection.current)
            if engine is None:
                break
            try:
                with self._turns.of(engine, partial(self._check_wait, answer, engine)):
                    answer.decode(engine, prepare)
                return
            except CloudUnreachable as error:
                if self._connection.current is engine:
                    self._connection.reconnect()
                if answer.has_begun:
                    raise
                lost = error
        if self._settings.fallback != "draft":
            raise lost or CloudUnreachable(self.why_away())
        alone = self._draft_engine()
        with self._turns.of(alone, answer.check):
            answer.is_verified = False
            answer.decode(alone, prepare)

    def _check_wait(self, answer: RunningAnswer, engine: Engine) -> None:
        """Raise what ends the wait of an answer for its turn with an engine."""
        answer.check()
        if self._connection.current is not engine:
            raise CloudUnreachable("the cloud was lost before the answer began")

    def _draft_engine(self) -> Engine:
        with self._draft_lock:
            self._draft = self._draft or cast("Engine", self._source.draft())
            return self._draft
