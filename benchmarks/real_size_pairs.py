"""Whole answers of pairs of real size: never slower where drafts cannot help, as fast as any where they can.

In one process the clock is the process's own CPU time, on one thread, so that whatever else runs does not
count. Over a socket it is wall-clock time; the strategies take turns, question by question.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from figures import Figure
from lib import real_pair

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.ports import Clock, Model, Verifier
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import make_hello
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink

TOKENS = 40
OTHERS = ("speculative", "pipelined", "colocated", "multi_branch", "early_exit")


class CpuClock:
    """`Clock` of this process's CPU time."""

    def now(self) -> float:
        """Return the seconds that this process has computed."""
        return time.process_time()

    def sleep(self, duration_s: float) -> None:
        """Wait: which takes no CPU time."""
        time.sleep(duration_s)


@dataclass(slots=True)
class Contestant:
    """One strategy's engine, which remembers, and the seconds of its answers."""

    engine: Engine
    clock: Clock
    seconds: list[float]

    def answer(self, number: int) -> Tokens:
        """Answer one question."""
        began_s = self.clock.now()
        updates = list(self.engine.answer(Observation(None, f"question {number}")))
        self.seconds.append(self.clock.now() - began_s)
        assert updates[-1].result is not None
        return updates[-1].result.tokens


def local(strategy: str, target: Model, draft: Model) -> Contestant:
    """Return an engine with both models in this process."""
    clock = CpuClock()
    verifier = LocalVerifier(target, clock, draft if strategy == "colocated" else None)
    return _contestant(strategy, draft, verifier, clock)


def _contestant(strategy: str, draft: Model, verifier: Verifier, clock: Clock) -> Contestant:
    config = EngineConfig(strategy=strategy, params=SamplingParams(max_tokens=TOKENS), free_text=True)
    return Contestant(Engine(draft, SilentCodec(), verifier, clock, config), clock, [])


def compete(contestants: dict[str, Contestant], answers: int) -> None:
    """Let all answer the same questions, in turn. Raises RuntimeError unless they say the same."""
    for number in range(answers):
        said = {name: contestant.answer(number) for name, contestant in contestants.items()}
        if len(set(said.values())) > 1:
            raise RuntimeError(f"question {number}: {said}")


def total_ratio(contestants: dict[str, Contestant], one: str, other: str) -> float:
    """Return the time of one strategy over another's, all answers together, the first ones included."""
    return sum(contestants[one].seconds) / sum(contestants[other].seconds)


def paired_ratio(contestants: dict[str, Contestant], one: str, other: str) -> float:
    """Return the median over the questions of one strategy's time over another's."""
    pairs = zip(contestants[one].seconds, contestants[other].seconds, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def one_process(answers: int) -> Iterator[Figure]:
    """Measure pairs in one process."""
    target = real_pair.target()
    for kind in ("wrong", "slow", "agrees"):
        draft = real_pair.draft(kind)
        names = ("autoregressive", "hybrid", *(OTHERS if kind == "agrees" else ()))
        contestants = {name: local(name, target, draft) for name in names}
        # A first answer also takes the room that all later ones use.
        compete({name: local(name, target, draft) for name in ("autoregressive", "colocated")}, 1)
        compete(contestants, answers)
        size = f"{answers} answers of {TOKENS} tokens, {real_pair.VOCABULARY} ids, CPU time"
        if kind == "agrees":
            best = min((n for n in names if n != "hybrid"), key=lambda n: sum(contestants[n].seconds))
            value = total_ratio(contestants, best, "hybrid")
            yield Figure("one_process_agrees", value, 0.97, "at least", f"over {best}; {size}")
            continue
        value = total_ratio(contestants, "hybrid", "autoregressive")
        first = contestants["hybrid"].seconds[0] / contestants["autoregressive"].seconds[0]
        yield Figure(f"one_process_{kind}", value, 1.15, "at most", f"first answer {first:.2f}; {size}")


def over_a_socket(answers: int) -> Iterator[Figure]:
    """Measure pairs over a loopback socket, the target in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        keys.generate(Path(folder))
        with _served(Path(folder)) as address:
            for kind in ("wrong", "slow"):
                draft = real_pair.draft(kind)
                with (
                    _connected(address, Path(folder), draft) as plain,
                    _connected(address, Path(folder), draft) as mine,
                ):
                    clock = WallClock()
                    contestants = {
                        "autoregressive": _contestant("autoregressive", draft, plain, clock),
                        "hybrid": _contestant("hybrid", draft, mine, clock),
                    }
                    contestants["autoregressive"].answer(0)
                    contestants["autoregressive"].seconds.clear()
                    compete(contestants, answers)
                note = (
                    f"median of {answers} answers in turn, wall-clock; load average {os.getloadavg()[0]:.1f}"
                )
                value = paired_ratio(contestants, "hybrid", "autoregressive")
                yield Figure(f"socket_{kind}", value, 1.05, "at most", note)


@contextmanager
def _connected(address: str, folder: Path, draft: Model) -> Iterator[RemoteVerifier]:
    clock = WallClock()
    link = DealerLink(address, keys.edge_keys(folder), clock)
    verifier = RemoteVerifier(link, make_hello(draft.card, language(False)), clock)
    try:
        verifier.connect(60.0)
        yield verifier
    finally:
        verifier.disconnect()


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    script = Path(real_pair.__file__)
    command = [sys.executable, str(script), "tcp://127.0.0.1:*", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
