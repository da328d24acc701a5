"""What our own code costs per round: two processes, loopback, CURVE, models that cost nothing.

python benchmarks/lib/overhead.py ADDRESS KEYS    serve the stub target
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
from itertools import pairwise
from pathlib import Path

import numpy as np

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.core.ports import ExitHook, Model, ModelCard, ModelContext
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import make_hello
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.router import RouterLink

VOCABULARY, TOKENS, ANSWERS = 64, 200, 4


@dataclass(frozen=True, slots=True)
class StubModel(Model):
    """Answers with a fixed run of tokens; `is_right` drafts it, else every fourth token is wrong."""

    is_right: bool

    @property
    def card(self) -> ModelCard:
        """Identity."""
        return ModelCard("stub", "1", "stub", "none", VOCABULARY, 1)

    def open(self, observation: Observation) -> StubContext:  # noqa: ARG002
        """Start one answer."""
        return StubContext(self.is_right)


@dataclass(frozen=True, slots=True)
class StubContext(ModelContext):
    """`ModelContext` of a stub: a row depends on its position alone."""

    is_right: bool

    def prefill(self) -> None:
        """Do nothing."""

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab]."""
        del on_exit  # it has no exits
        depths = [len(prefix)]
        for _, parent in zip(tokens, parents, strict=True):
            depths.append(depths[parent] + 1)
        rows = np.zeros((len(depths), VOCABULARY), dtype=np.float32)
        target_tokens = [(7 * d + (not self.is_right and d % 4 == 3)) % VOCABULARY for d in depths]
        rows[np.arange(len(depths)), target_tokens] = 5.0
        return rows


@dataclass(frozen=True, slots=True)
class Overhead:
    """Wall-clock times between verdicts, ascending, and the edge's CPU time per round; all of it ours."""

    rounds_s: list[float]
    edge_cpu_s: float

    @property
    def p50_ms(self) -> float:
        """The median in milliseconds."""
        return 1000 * statistics.median(self.rounds_s)


def overhead(strategy: str = "speculative") -> Overhead:
    """Measure rounds of a stub pair, an answer to warm up left out."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        keys.generate(Path(folder))
        with _served(Path(folder)) as address:
            clock, draft = WallClock(), StubModel(is_right=False)
            link = DealerLink(address, keys.edge_keys(Path(folder)), clock)
            verifier = RemoteVerifier(link, make_hello(draft.card, language(False)), clock)
            try:
                verifier.connect(20.0)
                engine = Engine(draft, SilentCodec(), verifier, clock)
                config = EngineConfig(
                    strategy=strategy, params=SamplingParams(max_tokens=TOKENS), draft_length=4
                )
                began_s = 0.0
                for number in range(ANSWERS + 1):
                    if number == 1:
                        began_s = time.process_time()
                    for update in engine.answer(Observation(None, "go"), config):
                        if update.result:
                            times = [r.at_s for r in update.result.rounds]
                            found += [b - a for a, b in pairwise(times)]
                spent_s = time.process_time() - began_s
            finally:
                verifier.disconnect()
    measured = sorted(found[len(found) // (ANSWERS + 1) :])
    return Overhead(measured, spent_s / len(measured))


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    command = [sys.executable, __file__, "tcp://127.0.0.1:*", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise CloudUnreachable("the stub cloud did not start")
            yield address
        finally:
            process.terminate()


def serve(address: str, folder: Path) -> None:
    """Serve the stub target until the process is ended."""
    link = RouterLink(address, keys.cloud_keys(folder))
    target = StubModel(is_right=True)
    server = CloudServer(link, ServerProtocol(target.card, language(False).digest), target, WallClock())
    sys.stdout.write(server.address + "\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
