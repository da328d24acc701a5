"""A cloud whose target is a hash: real server, protocol and sockets around a model that only sleeps.

    python benchmarks/service_cloud.py --keys DIR [--bind tcp://127.0.0.1:*] [--step-ms 5] [--open-door]
                                       [--fronts]

Started by benchmarks/service.py as a process of its own, to be killed, flooded and watched for its memory.
`--open-door` lifts the limits per key, so that a flood reaches the decoder; with `--fronts` robots come by
fronts. Ends at SIGTERM when answers under way are done, at SIGINT at once.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_spec_decode.bench.recorded import paths_of
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.ports import ExitHook, Model, ModelCard, ModelContext, Scored, ScoreRequest
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.transport.access import KeyLimits
from vlm_spec_decode.transport.keys import cloud_keys
from vlm_spec_decode.transport.router import RouterLink
from vlm_spec_decode.transport.trunk import TrunkLink

VOCAB = 64
HELLO = Hello("benchmark", "tokens", "prompt", "grammar", VOCAB)


@dataclass(slots=True)
class HashContext(ModelContext):
    """Logits drawn from a generator that the instruction and the prefix seed."""

    model: HashModel
    seed: int

    def prefill(self) -> None:
        """Nothing is to be filled."""

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab] after the time of one pass."""
        del on_exit  # it has no exits
        time.sleep(self.model.step_s)
        return self.rows(prefix, tokens, parents)

    def rows(self, prefix: Tokens, tokens: Tokens, parents: Tokens) -> Logits:
        """Return the same at once."""
        seeds = ([self.seed, len(path), *path[-3:]] for path in paths_of(prefix, tokens, parents))
        drawn = [np.random.default_rng(seed).normal(0, 3, VOCAB) for seed in seeds]
        return np.array(drawn, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class HashModel(Model):
    """A target; a batch takes as long as one."""

    step_s: float = 0.0

    @property
    def card(self) -> ModelCard:
        """What robots must agree with."""
        return ModelCard("hash", "1", HELLO.tokenizer_digest, HELLO.prompt_digest, VOCAB, 1)

    def open(self, observation: Observation) -> HashContext:
        """Start one answer."""
        return HashContext(self, sum(observation.instruction.encode()))

    def score_batch(self, queries: Seq[ScoreRequest]) -> list[Scored]:
        """Score all after the time of one pass."""
        time.sleep(self.step_s)
        return [q.context.rows(q.prefix, q.tokens, q.parents) for q in queries]  # type: ignore[attr-defined]


def answer_of(instruction: str, params: SamplingParams) -> Tokens:
    """Return the target's own answer."""
    context = HashModel().open(Observation(None, instruction))
    tokens: Tokens = ()
    while len(tokens) < params.max_tokens and (not tokens or tokens[-1] not in params.stop_ids):
        tokens += (pick(context.rows(tokens, (), ())[0], len(tokens), params),)
    return tokens


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bind", default="tcp://127.0.0.1:*")
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--open-door", action="store_true")
    parser.add_argument("--fronts", action="store_true")
    options = parser.parse_args()
    target = HashModel(options.step_ms / 1000)
    limits = KeyLimits(1 << 20, messages_per_s=1e12, bytes_per_s=1e12) if options.open_door else KeyLimits()
    keys = cloud_keys(options.keys)
    link = TrunkLink(options.bind, keys) if options.fronts else RouterLink(options.bind, keys, limits)
    server = CloudServer(link, ServerProtocol(target.card, HELLO.grammar_digest), target, WallClock())
    signal.signal(signal.SIGTERM, lambda *_: server.drain())
    signal.signal(signal.SIGINT, lambda *_: server.stop())
    print(json.dumps({"event": "ready", "address": server.address}), flush=True)
    server.serve()
    print(json.dumps({"messages": server.protocol.stats.messages, "dropped": server.protocol.stats.dropped}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
