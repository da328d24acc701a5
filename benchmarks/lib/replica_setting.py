"""What replicas serve in tests and measurements: the shipped target, or one that needs no checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.load import DraftIdentity, Question, shipped_identity
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.bench.synthetic import PairSpec, SyntheticFamily
from vlm_spec_decode.cloud.config import CloudConfig
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.replicas.pool import MakeServer
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import ExitHook, ModelContext, WrappedModel
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.transport.in_process import ServerLink

SPEC = PairSpec(acceptance=0.8)
TOKENS = 40
PASS_S = 0.005


@dataclass(frozen=True, slots=True)
class Setting:
    """What the replicas serve and what robots ask of them."""

    make: MakeServer
    identity: DraftIdentity
    questions: Sequence[Question]


def setting_of(model: str) -> Setting:
    """Return the setting of the `shipped` target, or of a `synthetic` one that needs no checkpoint."""
    if model == "shipped":
        from vlm_spec_decode.cloud.app import serve_on

        make: MakeServer = partial(serve_on, CloudConfig(language=language(), threads=1))
        return Setting(make, *shipped_identity())
    if model != "synthetic":
        raise ConfigError(f"model {model!r}; known: shipped, synthetic")
    card = SyntheticFamily.pair(SPEC)[1].card
    hello = Hello("load", card.tokenizer_digest, card.prompt_digest, "none", card.vocab_size)
    params = SamplingParams(max_tokens=TOKENS)
    questions = [Question(Observation(None, "go", frame_id=str(n)), params) for n in range(8)]
    return Setting(synthetic_server, DraftIdentity(hello, SilentCodec()), questions)


def synthetic_server(link: ServerLink) -> CloudServer:
    """Put a server of the synthetic target on the link; a pass takes `PASS_S`."""
    target = SlowTarget(SyntheticFamily.pair(SPEC)[1])
    return CloudServer(link, ServerProtocol(target.card, "none"), target, WallClock())


@dataclass(frozen=True, slots=True)
class SlowTarget(WrappedModel):
    """A target whose contexts take their time, so that answers are open when a fault comes."""

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer."""
        return _SlowContext(self.inner.open(observation))


@dataclass(frozen=True, slots=True)
class _SlowContext(ModelContext):
    inner: ModelContext

    def prefill(self) -> None:
        self.inner.prefill()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        WallClock().sleep(PASS_S)
        return self.inner.score(prefix, tokens, parents, on_exit=on_exit)

    def forced(self, prefix: Tokens) -> Tokens:
        return self.inner.forced(prefix)

    def close(self) -> None:
        self.inner.close()
