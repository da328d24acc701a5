"""Engines that answer from a script, behind a source that can lose its cloud."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vlm_spec_decode.core.errors import Cancelled, CloudUnreachable
from vlm_spec_decode.core.trace import GenerationResult, RoundTrace
from vlm_spec_decode.core.types import Image, Observation, SamplingParams
from vlm_spec_decode.edge.engine import AnswerUpdate, EngineConfig

WORDS = ("one ", "two ", "three ")
END = 2


@dataclass
class ScriptedAnswer:
    """Says `WORDS`, each when `step` allows; fails before word `fails_at`, waits
    for its end before word `pauses_at`."""

    engine: ScriptedEngine
    rounds: tuple[RoundTrace, ...] = ()
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[AnswerUpdate]:
        self.engine.open.append(self)
        try:
            yield from self._updates()
        finally:
            self.close()

    def _updates(self) -> Iterator[AnswerUpdate]:
        for n in range(len(WORDS)):
            while n == self.engine.pauses_at or not self.engine.gate.wait(0.005):
                self.is_cancelled.wait(0.005)
                if self.is_cancelled.is_set():
                    raise Cancelled("the answer was cancelled")
            if self.engine.is_lost or n == self.engine.fails_at:
                raise CloudUnreachable("the cloud is silent")
            self.rounds += (
                RoundTrace(
                    start=n, drafted=2, accepted=1, committed=1, draft_s=0, wait_s=0, verify_s=0, at_s=0
                ),
            )
            is_last = n + 1 == len(WORDS)
            text = self.engine.name + "".join(WORDS[: n + 1])
            result = self._result(text) if is_last else None
            yield AnswerUpdate(
                answer=1, tokens=(END if is_last else 5,), text=text, actions=(), result=result
            )

    def _result(self, text: str) -> GenerationResult:
        return GenerationResult(
            tokens=(5, 5, END), text=text, strategy="scripted", rule="coupled", rounds=self.rounds,
            early_verdicts=0, time_to_first_token_s=0, time_to_first_action_s=None, total_s=0,
        )  # fmt: skip

    def cancel(self) -> None:
        self.is_cancelled.set()

    def close(self) -> None:
        self.engine.open = [each for each in self.engine.open if each is not self]


@dataclass
class ScriptedEngine:
    """Answers when `gate` is open, until its cloud is lost."""

    name: str = ""
    fails_at: int = -1
    pauses_at: int = -1
    is_lost: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    open: list[ScriptedAnswer] = field(default_factory=list)
    asked: list[tuple[Observation, EngineConfig]] = field(default_factory=list)
    is_reachable: bool = True
    config: EngineConfig = field(default_factory=lambda: EngineConfig(params=SamplingParams(stop_ids=(END,))))

    def answer(self, observation: Observation, config: EngineConfig) -> Any:
        self.asked.append((observation, config))
        return ScriptedAnswer(self)

    def picture(self, data: bytes) -> Image:
        return Image(data, 8, 8)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def cancel(self) -> None:
        for answer in tuple(self.open):
            answer.cancel()


@dataclass
class ScriptedSource:
    """A cloud that is there or not, and a draft that says who it is."""

    is_there: bool = True
    engines: list[ScriptedEngine] = field(default_factory=list)
    alone: ScriptedEngine = field(default_factory=lambda: ScriptedEngine(name="draft: "))

    def connect(self) -> Any:
        if not self.is_there:
            raise CloudUnreachable("nobody listens")
        self.engines.append(ScriptedEngine())
        self.engines[-1].gate.set()
        return self.engines[-1]

    def draft(self) -> Any:
        self.alone.gate.set()
        return self.alone

    def facts(self) -> str:
        return (
            json.dumps({"target": {"model_id": "big"}, "draft": {"model_id": "small"}})
            if self.engines
            else ""
        )

    def close(self) -> None:
        """There is nothing to close."""
