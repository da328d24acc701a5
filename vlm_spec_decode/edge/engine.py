"""One instruction and one frame become committed tokens, text and actions.

The engine runs a strategy with a drafter and a verifier. Strategy and verifier report to a tracer, so every
strategy is measured by the same clock.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vlm_spec_decode.actions.parser import ActionParser, NoActions
from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.core.errors import Cancelled, NotFinite, TargetNotFinite
from vlm_spec_decode.core.ports import Clock, Drafter, ExitHook, Model, ModelContext, TextCodec, Verifier
from vlm_spec_decode.core.trace import AnswerTrace, GenerationResult, Tracer, TracerGroup
from vlm_spec_decode.core.types import AnswerRequest, Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.answer_cache import AnswerCache
from vlm_spec_decode.edge.picture_size import PictureSizer
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.estimators import DraftRecord
from vlm_spec_decode.strategies.registry import DEFAULT, strategy

WITHOUT_DRAFTS = "autoregressive"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How answers are decoded. `uplink_bps` is the rate of the uplink that drafts may use (bits per second).

    `image_budget_s` is how long a picture may take on the uplink, of those that `Engine.pictures` makes.
    With `free_text` no actions are read from an answer, so no text of it is an error.
    """

    strategy: str = DEFAULT
    params: SamplingParams = field(default_factory=SamplingParams)
    draft_length: int = 6
    timeout_s: float = 30.0
    objective: str = "latency"
    uplink_bps: float = 1e9
    image_budget_s: float = settings_of(EdgeSettings)["image_budget_s"].default
    free_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerUpdate:
    """What one commit added. `text` is the whole answer so far; `result` comes with the last update."""

    answer: int
    tokens: Tokens
    text: str
    actions: tuple[Action, ...]
    result: GenerationResult | None = None


class Engine:
    """Decodes one answer at a time; `cancel` may be called from any thread.

    `pictures` makes an observation's image from a camera frame: of a size that the target can use and the
    uplink carries. `draft_step_s` is what a step of the draft takes, as measured before the first answer; 0:
    not known.
    """

    def __init__(
        self,
        drafter: Model | None,
        codec: TextCodec,
        verifier: Verifier,
        clock: Clock,
        config: EngineConfig | None = None,
        tracer: Tracer | None = None,
        draft_step_s: float = 0.0,
    ) -> None:
        self._drafter = drafter
        self._codec = codec
        self._verifier = verifier
        self._clock = clock
        self._tracer = tracer
        self._numbers = itertools.count(1)
        self._previous: Tokens = ()
        self._answer_cache = AnswerCache()
        self._record = DraftRecord(step_ratio=_step_ratio(drafter, verifier))
        self._record.step.learn(1, draft_step_s)
        self._cancels = self._cancels_before = 0
        self.config = config or EngineConfig()
        self.pictures = PictureSizer(verifier, self.config.image_budget_s)

    def answer(self, observation: Observation, config: EngineConfig | None = None) -> Iterator[AnswerUpdate]:
        """Yield an update per commit; the last one carries the result.

        If the draft model's logits are not finite, the answer continues without drafts, after a warning.
        Raises ActionParseError at the first text that looks like an action and is none, CloudError if
        the verifier fails, NotFinite if the target's logits in this process cannot be used, Cancelled after
        `cancel`.
        """
        config = config or self.config
        number, self._cancels_before = next(self._numbers), self._cancels
        trace = AnswerTrace(self._clock.now)
        # Under `rejection` drafted tokens must be draws from q; those of a cached answer are not.
        recalls = strategy(config.strategy).recalls and config.params.rule == "coupled"
        request = AnswerRequest(
            number,
            observation,
            config.params,
            config.strategy,
            objective=config.objective,
            draft=self._answer_cache.draft(observation, number) if recalls else None,
            draft_step_s=self._record.step.base_s,
        )
        tracer = TracerGroup(trace, self._tracer) if self._tracer else trace
        self._verifier.open(request, tracer)
        drafter: Drafter | None = None
        try:
            drafter = self._open_drafter(config, observation)
            yield from self._decode(request, config, drafter, trace, tracer)
        finally:
            self._verifier.close()
            if drafter:
                drafter.close()

    def picture(self, data: bytes) -> Image:
        """Return a frame, an image file's bytes, as the image of an observation. Raises ImageError."""
        return self.pictures.reduce(data)

    def cancel(self) -> None:
        """Abandon the answer in progress."""
        self._cancels += 1
        self._verifier.cancel()

    def _open_drafter(self, config: EngineConfig, observation: Observation) -> Drafter:
        if self._drafter is None or not strategy(config.strategy).drafts:
            return NoDrafter()
        return self._drafter.open(observation)

    def _decode(
        self,
        request: AnswerRequest,
        config: EngineConfig,
        drafter: Drafter,
        trace: AnswerTrace,
        tracer: Tracer,
    ) -> Iterator[AnswerUpdate]:
        sequence = Sequence()
        parser = NoActions() if config.free_text else ActionParser()
        instruction = self._codec.encode(request.observation.instruction)
        recalled = self._answer_cache.tokens(request.observation)
        edge_config = EdgeConfig(
            answer=request.answer,
            params=config.params,
            draft_length=config.draft_length,
            timeout_s=config.timeout_s,
            hints=tuple(hint for hint in (recalled or self._previous, instruction) if hint),
            uplink_bps=min(1e9, config.uplink_bps),
            objective=config.objective,
            sent=request.draft,
            tracer=tracer,
            record=self._record,
        )
        text, actions_at_s, first_token_s = "", None, 0.0
        for tokens in self._tokens(request, sequence, drafter, edge_config):
            first_token_s = first_token_s or trace.elapsed_s
            decoded = self._codec.decode(sequence.tokens)
            stable = decoded if decoded.startswith(text) else text
            actions = parser.feed(stable[len(text) :])
            text = stable
            if sequence.finished:
                actions += parser.feed(decoded[len(text) :])
                parser.finish()
                text = decoded
            if actions and actions_at_s is None:
                actions_at_s = trace.elapsed_s
            result = None
            if sequence.finished:
                self._previous = sequence.tokens
                self._answer_cache.add(request.observation, sequence.tokens)
                result = self._result(sequence, text, config, trace, first_token_s, actions_at_s)
            yield AnswerUpdate(
                answer=request.answer, tokens=tokens, text=text, actions=actions, result=result
            )

    def _tokens(
        self, request: AnswerRequest, sequence: Sequence, drafter: Drafter, config: EdgeConfig
    ) -> Iterator[Tokens]:
        """Yield committed tokens. If the draft's logits are not finite, go on without drafts."""
        verifier, clock = self._verifier, self._clock
        try:
            yield from strategy(request.strategy).decode(sequence, drafter, verifier, clock, config)
        except TargetNotFinite:
            raise
        except NotFinite as error:
            log.warning("this answer goes on without drafts: %s", NotFinite(error.what, "draft"))
            self._reopen(request, sequence, config.tracer)
            yield from strategy(WITHOUT_DRAFTS).decode(sequence, drafter, verifier, clock, config)

    def _reopen(self, request: AnswerRequest, sequence: Sequence, tracer: Tracer) -> None:
        """Open the answer again without drafts, after its committed tokens, which stay as they are."""
        number = next(self._numbers)
        self._verifier.close()
        without_drafts = replace(request, answer=number, strategy=WITHOUT_DRAFTS, draft=None)
        self._verifier.open(replace(without_drafts, committed=sequence.tokens), tracer)
        if self._cancels != self._cancels_before:
            raise Cancelled("the answer was cancelled")  # while no answer was open at the verifier

    def _result(
        self,
        sequence: Sequence,
        text: str,
        config: EngineConfig,
        trace: AnswerTrace,
        first_token_s: float,
        first_action_s: float | None,
    ) -> GenerationResult:
        return GenerationResult(
            tokens=sequence.tokens,
            text=text,
            strategy=config.strategy,
            rule=config.params.rule,
            rounds=tuple(trace.rounds),
            early_verdicts=trace.early_verdicts,
            time_to_first_token_s=first_token_s,
            time_to_first_action_s=first_action_s,
            total_s=trace.elapsed_s,
            usage=self._verifier.usage,
            lossless=config.params.lossless,
        )


def _step_ratio(drafter: Model | None, verifier: Verifier) -> float:
    """Return what a draft step takes over a step of the target, by the bytes that both read; 0: not known."""
    if drafter is None or not verifier.target_bytes:
        return 0.0
    return drafter.step_bytes / verifier.target_bytes


class NoDrafter(ModelContext):
    """The drafter of strategies that have none."""

    def prefill(self) -> None:
        """Do nothing."""

    def score(
        self,
        prefix: Tokens,  # noqa: ARG002
        tokens: Tokens = (),  # noqa: ARG002
        parents: Tokens = (),  # noqa: ARG002
        *,
        on_exit: ExitHook | None = None,  # noqa: ARG002
    ) -> Logits:
        """Raise RuntimeError: a strategy that drafts must be registered as one."""
        raise RuntimeError("this strategy does not draft")

    def forced(self, prefix: Tokens) -> Tokens:  # noqa: ARG002
        """Return (): forced tokens come with the commits."""
        return ()

    def close(self) -> None:
        """Do nothing."""
