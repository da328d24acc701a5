"""One answer in virtual time: the result of a strategy, a profile, a link and a pair of models.

Decoding is the engine's own, on the virtual verifier; this module connects the parts and reads the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_spec_decode.bench.pairs import folders_of
from vlm_spec_decode.bench.recorder import AnswerRecorder, EdgeEvent
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import CloudUnreachable, VsdError
from vlm_spec_decode.core.ports import Model, TextCodec
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, load_link
from vlm_spec_decode.core.trace import GenerationResult, LinkUsage
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.edge.verifier_virtual import VirtualModel, VirtualVerifier
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport import keys

if TYPE_CHECKING:
    from vlm_spec_decode.bench.cells import Cell
    from vlm_spec_decode.bench.pairs import BenchPair

TIMEOUT_S = 3600.0
"""Of virtual time: no cell of a comparison comes near it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """Everything but the models and the question: what one cell of the comparison is made of.

    `is_repeat` asks the question twice of one engine and measures the second answer.
    """

    strategy: str
    hardware: HardwareProfile
    link: LinkProfile
    draft_length: int = 4
    objective: str = "latency"
    has_helper: bool = False
    seed: int = 0
    is_repeat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One answer's figures; seconds of virtual time, bytes on the wire, the uplink's without the image."""

    tokens: Tokens
    total_s: float
    first_token_s: float
    first_action_s: float | None
    passes: int
    drafted: int
    accepted: int
    early: int
    lookups: int
    hits: int
    draft_s: float
    gpu_s: float
    up_bytes: int
    down_bytes: int
    image_bytes: int
    moments: tuple[EdgeEvent, ...] = field(default=(), repr=False)
    why: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, result: GenerationResult, usage: LinkUsage, *, draft_s: float, gpu_s: float) -> Outcome:
        """Return the figures that every answer has; what only a recording in virtual time tells is 0."""
        return cls(
            tokens=result.tokens,
            total_s=result.total_s,
            first_token_s=result.time_to_first_token_s,
            first_action_s=result.time_to_first_action_s,
            passes=result.target_passes,
            drafted=result.drafted,
            accepted=result.accepted,
            early=result.early_verdicts,
            lookups=0,
            hits=0,
            draft_s=draft_s,
            gpu_s=gpu_s,
            up_bytes=usage.uplink_bytes,
            down_bytes=usage.downlink_bytes,
            image_bytes=usage.image_bytes,
        )


class SilentCodec:
    """The codec of a pair whose tokens mean nothing."""

    def encode(self, text: str) -> Tokens:  # noqa: ARG002
        """Return ()."""
        return ()

    def decode(self, tokens: Seq[int]) -> str:  # noqa: ARG002
        """Return no text."""
        return ""


def decode(
    setup: RunSetup,
    draft: Model,
    target: Model,
    observation: Observation,
    params: SamplingParams,
    codec: TextCodec | None = None,
) -> Outcome:
    """Decode one answer and return its figures. Without a codec there are no actions to time."""
    clock = VirtualClock()
    tally = AnswerRecorder(clock)
    helper = draft if setup.has_helper else None
    verifier = VirtualVerifier(target, setup.hardware, setup.link, clock, helper, setup.seed)
    edge = VirtualModel(draft, setup.hardware, clock)
    config = EngineConfig(
        strategy=setup.strategy,
        params=params,
        draft_length=setup.draft_length,
        timeout_s=TIMEOUT_S,
        objective=setup.objective,
        uplink_bps=min(1e9, setup.link.up_mbps * 1e6),
    )
    engine = Engine(edge, codec or SilentCodec(), verifier, clock, config, tally)
    started_s = gpu_s = 0.0
    if setup.is_repeat:
        _answer(engine, observation)
        started_s, gpu_s = clock.now(), verifier.gpu_s
        tally.moments.clear()
        tally.lookups = tally.hits = 0
        tally.draft_s = 0.0
    result = _answer(engine, observation)
    moments = (m._replace(start_s=m.start_s - started_s, end_s=m.end_s - started_s) for m in tally.moments)
    found = Outcome.of(result, verifier.usage, draft_s=tally.draft_s, gpu_s=verifier.gpu_s - gpu_s)
    why = tuple(r.why for r in result.rounds)
    return replace(found, lookups=tally.lookups, hits=tally.hits, moments=tuple(moments), why=why)


def _answer(engine: Engine, observation: Observation) -> GenerationResult:
    for update in engine.answer(observation):
        if update.result:
            return update.result
    raise VsdError("the engine ended without a result")


def wall_answers(cell: Cell, pair: BenchPair) -> list[Outcome]:
    """Decode all questions of a pair of checkpoints over sockets. Raises ConfigError for other pairs."""
    draft, target = folders_of(pair.name)
    has_helper = cell.strategy.endswith("+") or strategy(cell.name).needs_helper
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, pinned(cores[0]):
        key_folder = Path(folder)
        keys.generate(key_folder)
        with cloud(target, draft if has_helper else "", key_folder, cores[-1]) as address:
            settings = EdgeSettings(
                cloud=address,
                keys=key_folder,
                draft=draft,
                strategy=cell.name,
                temperature=cell.temperature,
                max_tokens=pair.params.max_tokens,
                draft_length=cell.draft_length,
                objective=cell.objective,
                link=load_link(cell.link),
            )
            return _ask(settings, pair)


@contextmanager
def cloud(target: str, draft: str, key_folder: Path, core: int) -> Iterator[str]:
    """Run `vsd cloud` on one core and give its address; it ends with the block."""
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "cloud", "--bind", "tcp://127.0.0.1:*"]
    command += [
        "--model",
        target,
        "--keys",
        str(key_folder),
        "--json",
        *(["--draft", draft] if draft else []),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as process,
    ):
        try:
            os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                said.seek(0)
                raise CloudUnreachable(f"the cloud did not start: {said.read()[-300:]}")
            yield json.loads(line)["address"]
        finally:
            process.terminate()


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Hold this process to one core for the block, and its threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ask(settings: EdgeSettings, pair: BenchPair) -> list[Outcome]:
    """Ask every question once after one to warm up."""
    runtime, found = bring_up(settings), []
    try:
        for question in (pair.questions[0], *pair.questions):
            for update in runtime.engine.answer(question):
                if update.result:
                    found.append(_outcome(update.result))
    finally:
        runtime.close()
    return found[1:]


def _outcome(result: GenerationResult) -> Outcome:
    """Return a result as virtual time has it; what only a virtual clock can tell is 0."""
    draft_s, gpu_s = sum(r.draft_s for r in result.rounds), sum(r.verify_s for r in result.rounds)
    return Outcome.of(result, result.usage, draft_s=draft_s, gpu_s=gpu_s)
