"""What our own code costs per round: two processes, loopback, CURVE, models that cost nothing.

python benchmarks/lib/overhead.py ADDRESS KEYS VOCABULARY    serve the stub target
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

import torch
from torch import Tensor

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.choices import Choices, Logits
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.core.ports import NO_NODES, ExitHook, Model, ModelCard, ModelContext, OnExit, Rows, Tree
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import as_logits
from vlm_spec_decode.decoding.tree import positions_of
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import make_hello
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.models.decoder import choices_of
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.router import RouterLink

VOCABULARY, TOKENS, ANSWERS = 64, 200, 4


STRIDE, MOST_ROWS = 7, 1024


def stub_rows(vocabulary: int) -> Tensor:
    """Return what all rows of a stub are windows of: row d is [STRIDE d : STRIDE d + vocabulary].

    So a row costs nothing, however large the vocabulary.
    """
    numbers = torch.zeros(vocabulary + STRIDE * MOST_ROWS)
    numbers[vocabulary - 1 :: vocabulary] = 5.0
    return numbers


@dataclass(frozen=True, slots=True)
class StubModel(Model):
    """Answers with a fixed run of tokens; `is_right` drafts it, else every fourth token is wrong."""

    is_right: bool
    vocabulary: int
    numbers: Tensor

    @classmethod
    def of(cls, vocabulary: int, *, is_right: bool) -> StubModel:
        """Return a stub with so many ids."""
        return cls(is_right, vocabulary, stub_rows(vocabulary))

    @property
    def card(self) -> ModelCard:
        """Identity."""
        return ModelCard("stub", "1", "stub", "none", self.vocabulary, 1)

    def open(self, observation: Observation) -> StubContext:  # noqa: ARG002
        """Start one answer."""
        return StubContext(self)


@dataclass(frozen=True, slots=True)
class StubContext(ModelContext):
    """`ModelContext` of a stub: a row depends on its position alone."""

    model: StubModel

    def prefill(self) -> None:
        """Do nothing."""

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Choices:
        """Return the rows that are asked for, as a model returns them."""
        del on_exit  # it has no exits
        depths = positions_of(tree[1], len(prefix))
        asked = depths if rows is None else [depths[row] for row in rows]
        starts = [STRIDE * d + (not self.model.is_right and d % 4 == 3) for d in asked]
        numbers, size = self.model.numbers, self.model.vocabulary
        if all(b - a == STRIDE for a, b in pairwise(starts)):
            return choices_of(numbers.as_strided((len(starts), size), (STRIDE, 1), starts[0]))
        return choices_of(torch.stack([numbers[start : start + size] for start in starts]))

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab]."""
        return as_logits(self, prefix, (tokens, parents), on_exit)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Wall-clock times between verdicts, ascending, and the edge's CPU time per round; all of it ours."""

    rounds_s: list[float]
    edge_cpu_s: float

    @property
    def p50_ms(self) -> float:
        """The median in milliseconds."""
        return 1000 * statistics.median(self.rounds_s)


def overhead(strategy: str = "speculative", vocabulary: int = VOCABULARY) -> Overhead:
    """Measure rounds of a stub pair, an answer to warm up left out."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        keys.generate(Path(folder))
        with _served(Path(folder), vocabulary) as address:
            clock, draft = WallClock(), StubModel.of(vocabulary, is_right=False)
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
def _served(folder: Path, vocabulary: int) -> Iterator[str]:
    command = [sys.executable, __file__, "tcp://127.0.0.1:*", str(folder), str(vocabulary)]
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


def serve(address: str, folder: Path, vocabulary: int) -> None:
    """Serve the stub target until the process is ended."""
    link = RouterLink(address, keys.cloud_keys(folder))
    target = StubModel.of(vocabulary, is_right=True)
    server = CloudServer(link, ServerProtocol(target.card, language(False).digest), target, WallClock())
    sys.stdout.write(server.address + "\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
