"""One instruction and one frame become committed tokens, text and actions.

The engine runs a strategy with a drafter and a verifier. Strategy and verifier report to a tracer, so every
strategy is measured by the same clock. Several answers may be open at once, each decoded by who iterates it;
they share the draft model (`edge.shared_draft`), and in the cloud its passes (see also `edge.open_answers`).
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

from vlm_spec_decode.actions.parser import ActionParser, NoActions, parse_answer
from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.core.errors import (
    ActionParseError,
    Cancelled,
    EngineBusy,
    NotFinite,
    OverBudget,
    TargetNotFinite,
)
from vlm_spec_decode.core.ports import Clock, Drafter, Model, TextCodec, Verifier
from vlm_spec_decode.core.processes import Processes, Threads
from vlm_spec_decode.core.trace import (
    NO_TRACER,
    AnswerTrace,
    GenerationResult,
    LinkUsage,
    RoundTrace,
    Tracer,
    TracerGroup,
)
from vlm_spec_decode.core.types import AnswerRequest, Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sequence import Sequence, token_ends
from vlm_spec_decode.edge.answer_cache import AnswerCache
from vlm_spec_decode.edge.draft_ahead import DraftAhead
from vlm_spec_decode.edge.draft_budget import DraftBudget
from vlm_spec_decode.edge.hint_tree import HintTree
from vlm_spec_decode.edge.picture_size import PictureSizer
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.edge.shared_draft import DraftArbiter, DraftProgress, NoDrafter, SharedDraft, step_ratio
from vlm_spec_decode.edge.told_numbers import ToldNumbers
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy
from vlm_spec_decode.strategies.estimators import DraftRecord
from vlm_spec_decode.strategies.preview import DraftPreview
from vlm_spec_decode.strategies.registry import DEFAULT, strategy

WITHOUT_DRAFTS = "autoregressive"

UNFINISHED = "\ufffd"
"""What bytes that are no character yet are decoded to."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How answers are decoded. `uplink_bps` is the rate of the uplink that drafts may use (bits per second).

    `image_budget_s` is how long a picture may take on the uplink, of those that `Engine.pictures` makes.
    With `free_text` no actions are read from an answer, so no text of it is an error. Where
    `hint_branches` is off, what is drafted ahead goes up as its likeliest chain alone. `draft_floor` is how
    likely a token must be for `hybrid` to draft below it and to send it.
    """

    strategy: str = DEFAULT
    params: SamplingParams = field(default_factory=SamplingParams)
    draft_length: int = 6
    timeout_s: float = 30.0
    objective: str = "latency"
    deadline_s: float = 0.0
    uplink_bps: float = 1e9
    image_budget_s: float = settings_of(EdgeSettings)["image_budget_s"].default
    free_text: bool = False
    hint_branches: bool = True
    draft_floor: float = settings_of(EdgeSettings)["draft_floor"].default


@dataclass(frozen=True, slots=True)
class DraftedAction:
    """An answer's first action as the edge's draft has it: no token of it need be committed.

    `text` is the answer up to its end: the committed text, then what is drafted after it. `chance` is the
    probability that the cloud says all of that, by the draft and what it has been worth.
    """

    action: Action
    text: str
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerUpdate:
    """What one commit added. `text` is the whole answer so far; `result` comes with the last update.

    `usage` counts the answer's bytes so far. With a preview there are further updates that add nothing and
    have `drafted`: what the draft says that the first action will be. Only what is in `actions` is decided.
    """

    answer: int
    tokens: Tokens
    text: str
    actions: tuple[Action, ...]
    usage: LinkUsage = field(default_factory=LinkUsage)
    result: GenerationResult | None = None
    drafted: DraftedAction | None = None


class DecodedAnswer(Iterator[AnswerUpdate]):
    """One answer of an engine: an iterator over its updates, advanced by one thread at a time.

    `start` sends the question before the first update is asked for. `cancel` ends the answer from any thread:
    who waits for it gets Cancelled. `close` ends it while nobody waits, and so does dropping it. The other
    answers go on.
    """

    def __init__(self, engine: Engine, state: _AnswerState) -> None:
        # Neither state nor generator refer to this object: who drops it closes the generator at once.
        self._engine = engine
        self._state = state
        self._updates = engine._decode(state)

    @property
    def observation(self) -> Observation:
        """What was asked."""
        return self._state.observation

    @property
    def rounds(self) -> tuple[RoundTrace, ...]:
        """The commits so far; that of an answer which is ended early has no other result."""
        return tuple(self._state.trace.rounds) if self._state.trace else ()

    def start(self) -> None:
        """Send the question, if it is not sent yet. Raises what the first `next` does."""
        self._engine._begin(self._state)

    def __next__(self) -> AnswerUpdate:
        """Wait for the next update. Raises as `Engine.answer` says."""
        return next(self._updates)

    def cancel(self) -> None:
        """Abandon the answer, here and at the cloud. One that has ended stays as it is."""
        self._engine._cancel(self._state)

    def close(self) -> None:
        """End the answer, here and at the cloud, and free what it holds. Idempotent."""
        try:
            self._updates.close()
        finally:
            self._engine._end(self._state)  # also if it was started and no update was asked for

    def __del__(self) -> None:
        """End an answer that was started and of which no update was ever asked for."""
        if hasattr(self, "_state"):  # else an interrupt came before it was made
            self._engine._end(self._state)


@dataclass(slots=True, eq=False)
class _AnswerState:
    """One answer: what was asked, and what it has in use from its start to its end."""

    observation: Observation
    config: EngineConfig
    shown: FirstDrafted | None = None
    verifier: Verifier | None = None
    request: AnswerRequest | None = None
    trace: AnswerTrace | None = None
    tracer: Tracer = NO_TRACER
    progress: DraftProgress = field(default_factory=DraftProgress)
    drafter: Drafter | None = None
    sequence: Sequence = field(default_factory=Sequence)
    is_begun: bool = False
    is_cancelled: bool = False


class Engine:
    """Decodes answers, several at a time if the verifier can; `cancel` may be called from any thread.

    `pictures` makes an observation's image from a camera frame: of a size that the target can use and the
    uplink carries. `draft_step_s` is what a step of the draft takes, as measured before the first answer; 0:
    not known. `processes` is how answers run beside each other; by default in threads of the caller. `budget`
    is what all drafting together may take; None: there is no limit.
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
        processes: Processes | None = None,
        budget: DraftBudget | None = None,
    ) -> None:
        self._drafter = drafter
        self._codec = codec
        self._verifier = verifier
        self._clock = clock
        self._tracer = tracer
        self._numbers = itertools.count(1)
        self._previous: Tokens = ()
        self._answer_cache = AnswerCache()
        self._record = DraftRecord(step_ratio=step_ratio(drafter, verifier))
        self._record.step.learn(1, draft_step_s)
        self._lock = threading.RLock()
        self._open: list[_AnswerState] = []
        self._free: list[Verifier] = [verifier]
        self.processes = processes or Threads()
        self.clock = clock
        self._arbiter = DraftArbiter(self.processes, clock, drafter, lambda: self._record.step.slope, budget)
        self.config = config or EngineConfig()
        self._strategies: dict[str, Strategy] = {}
        self._strategy(self.config)
        self.pictures = PictureSizer(verifier, self.config.image_budget_s)

    def _strategy(self, config: EngineConfig) -> Strategy:
        """Return the strategy of a configuration, the same for every answer. Raises ConfigError."""
        name = config.strategy
        if name not in self._strategies:
            self._strategies[name] = strategy(name)
        return self._strategies[name]

    def _recalls(self, config: EngineConfig) -> bool:
        """Return whether drafts of other models than q may be sent, such as those of a cached answer."""
        # Under `rejection` drafted tokens must be draws from q; those of a cached answer are not.
        return self._strategy(config).recalls and config.params.rule == "coupled"

    @property
    def max_answers(self) -> int:
        """How many answers may be open at once."""
        return self._verifier.max_answers

    @property
    def is_reachable(self) -> bool:
        """Whether the target can be asked now, as far as is known, also while no answer is open."""
        return self._verifier.is_reachable

    @property
    def has_room(self) -> bool:
        """Whether one more may be opened now. One that was cancelled does not count, though it still ends."""
        return sum(not answer.is_cancelled for answer in self._open) < self.max_answers

    def answer(
        self, observation: Observation, config: EngineConfig | None = None, *, preview: bool = False
    ) -> DecodedAnswer:
        """Return the answer: an iterator with an update per commit; the last one carries the result.

        With `preview` also one whenever the draft names another first action, or is surer of it, until one
        is committed.

        The question is sent when the first update is asked for. If the draft model's logits are not finite,
        the answer continues without drafts, after a warning. Its iteration raises EngineBusy if `max_answers`
        are open, ActionParseError at the first text that looks like an action and is none, CloudError if the
        verifier fails, NotFinite if the target's logits in this process cannot be used, Cancelled after
        `cancel`.
        """
        config = config or self.config
        shown = FirstDrafted(self._codec) if preview and not config.free_text else None
        return DecodedAnswer(self, _AnswerState(observation, config, shown))

    def draft_ahead(self, observation: Observation, *, walks_m: float = 0.0) -> Iterator[Tokens]:
        """Draft the answer with the draft model alone; yield its likeliest tokens so far after each step.

        Where it is left off, what is drafted is kept: `answer` sends it with the same question about a later
        frame. `walks_m` is how far the body walks forward from this frame to that one, as far as is known:
        the distances that may be told then are drafted, too. Nothing is committed, and the cloud is not
        asked. Ends at once where drafts are not used. It is for the time in which no answer is open.
        """
        config = self.config
        if self._drafter is None or not self._strategy(config).drafts or not self._recalls(config):
            return
        tokens: Tokens = ()
        with self._lock:
            known = self._answer_cache.known(observation)
        models = self._verifier.models
        drafter = SharedDraft.open(self._drafter, observation, self._arbiter, DraftProgress(), models)
        ahead = DraftAhead(
            drafter=drafter,
            config=EdgeConfig(answer=0, params=config.params, record=self._record),
            numbers=ToldNumbers(self._codec, observation.instruction, walks_m, is_read=not config.free_text),
            known=known,
        )
        try:
            for tokens in ahead.steps():
                yield tokens
        except NotFinite as error:
            log.warning("nothing is drafted ahead: %s", NotFinite(error.what, "draft"))
        finally:
            drafter.close()
            hint = ahead.hint() if config.hint_branches else HintTree.chain(tokens)
            with self._lock:
                self._answer_cache.add_early(observation, tokens, hint)

    def trace_with(self, tracer: Tracer) -> None:
        """Give the events of all answers that begin from now on to `tracer`, too."""
        self._tracer = tracer

    def picture(self, data: bytes) -> Image:
        """Return a frame, an image file's bytes, as the image of an observation. Raises ImageError."""
        return self.pictures.reduce(data)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the models' tokenizer makes of a text."""
        return len(self._codec.encode(text))

    def cancel(self) -> None:
        """Abandon all open answers."""
        with self._lock:
            for answer in tuple(self._open):
                self._cancel(answer)

    def _cancel(self, answer: _AnswerState) -> None:
        """Abandon an answer; from any thread."""
        # Under the lock under which verifiers are handed out: else the answer might end in between, and
        # the next one at its verifier be cancelled. No verifier waits in `cancel`.
        with self._lock:
            answer.is_cancelled = True
            if answer.verifier is not None:
                answer.verifier.cancel()

    # Opening and ending --------------------------------------------------------------------------

    def _begin(self, answer: _AnswerState) -> None:
        """Open an answer at a free verifier, unless that was done. It waits for nothing."""
        if answer.is_begun:
            return
        answer.is_begun = True
        answer.config = self._within_budget(answer.config)
        observation, config, number = answer.observation, answer.config, next(self._numbers)
        answer.trace = AnswerTrace(self._clock.now)
        tracers = (answer.trace, answer.progress, *((self._tracer,) if self._tracer else ()))
        answer.tracer = TracerGroup(*tracers)
        with self._lock:
            draft = self._answer_cache.draft(observation, number) if self._recalls(config) else None
        request = answer.request = AnswerRequest(
            number,
            observation,
            config.params,
            config.strategy,
            objective=config.objective,
            draft=draft,
            draft_step_s=self._record.step.base_s,
            deadline_s=config.deadline_s,
        )
        try:
            self._open_verifier(answer).open(request, answer.tracer)
            if answer.is_cancelled:
                raise Cancelled("the answer was cancelled")  # perhaps before it was open at the verifier
        except BaseException:
            self._end(answer)
            raise

    def _within_budget(self, config: EngineConfig) -> EngineConfig:
        """Return how to decode a new answer: without drafts if it waits for some that may not be made."""
        budget, chosen = self._arbiter.budget, self._strategy(config)
        if budget and chosen.drafts and chosen.waits_for_drafts and not budget.allows(has_begun=False):
            return replace(config, strategy=WITHOUT_DRAFTS)
        return config

    def _open_verifier(self, answer: _AnswerState) -> Verifier:
        """Give the answer a free verifier: the engine's own if that is free. Raises EngineBusy."""
        with self._lock:
            if not self.has_room:
                raise EngineBusy(f"{len(self._open)} answers are open, and no more can be at a time")
            if not self._free:
                self._free.append(self._verifier.another())
            verifier = min(self._free, key=lambda each: each is not self._verifier)
            self._free.remove(verifier)
            self._open.append(answer)
            answer.verifier = verifier
        return verifier

    def _end(self, answer: _AnswerState) -> None:
        """Close what an answer has in use; its verifier is free for the next one. Idempotent."""
        with self._lock:
            verifier, drafter = answer.verifier, answer.drafter
            answer.verifier = answer.drafter = None
        if verifier is None:
            return
        try:
            verifier.close()
            if drafter:
                drafter.close()
        finally:
            with self._lock:
                self._free.append(verifier)
                self._open.remove(answer)

    def _open_drafter(self, answer: _AnswerState) -> Drafter:
        if self._drafter is None or not self._strategy(answer.config).drafts or answer.verifier is None:
            return NoDrafter()
        models = answer.verifier.models
        return SharedDraft.open(self._drafter, answer.observation, self._arbiter, answer.progress, models)

    # Decoding ------------------------------------------------------------------------------------

    def _decode(self, answer: _AnswerState) -> Generator[AnswerUpdate, None, None]:
        """Yield the updates. However this generator ends, the answer ends at the verifier too."""
        try:
            self._begin(answer)
            if answer.verifier is None:
                return  # it has ended before its first update was asked for
            # Here, for the draft model may be at work for another answer.
            answer.drafter = self._open_drafter(answer)
            yield from self._updates(answer)
        finally:
            if not answer.sequence.finished:
                with self._lock:
                    self._answer_cache.add_early(answer.observation, answer.sequence.tokens)
            self._end(answer)

    def _updates(self, answer: _AnswerState) -> Iterator[AnswerUpdate]:
        request, config, trace, verifier = answer.request, answer.config, answer.trace, answer.verifier
        assert request is not None and trace is not None and verifier is not None  # noqa: PT018
        shown, sequence, cache = answer.shown, answer.sequence, self._answer_cache
        parser = NoActions() if config.free_text else ActionParser()
        early, recalled = cache.early_tokens(request.observation), cache.tokens(request.observation)
        known = (early, recalled or self._previous, self._codec.encode(request.observation.instruction))
        edge_config = EdgeConfig(
            answer=request.answer,
            params=config.params,
            draft_length=config.draft_length,
            timeout_s=config.timeout_s,
            hints=tuple(hint for hint in known if hint),
            recall=cache.continuation_of(request.observation),
            uplink_bps=min(1e9, config.uplink_bps),
            draft_floor=config.draft_floor,
            objective=config.objective,
            sent=request.draft,
            tracer=answer.tracer,
            record=self._record,
            preview=shown.preview if shown else None,
        )
        text, actions_at_s, first_token_s = "", None, 0.0
        for tokens in self._tokens(answer, verifier, sequence, edge_config):
            if shown and (drafted := shown.take()):
                yield AnswerUpdate(answer=request.answer, tokens=(), text=text, actions=(), drafted=drafted)
            if shown and not tokens and not sequence.finished:
                continue
            first_token_s = first_token_s or trace.elapsed_s
            decoded = self._codec.decode(sequence.tokens)
            # The last character may still lack bytes, of tokens to come; told now it would have to be untold.
            whole = decoded if sequence.finished else decoded.rstrip(UNFINISHED)
            stable = whole if whole.startswith(text) else text
            actions = parser.feed(stable[len(text) :])
            text = stable
            if sequence.finished:
                actions += parser.feed(decoded[len(text) :])
                parser.finish()
                text = decoded
            if actions and actions_at_s is None:
                actions_at_s = trace.elapsed_s
                if shown:
                    shown.preview.is_closed = True
            result, usage = None, verifier.usage
            if sequence.finished:
                with self._lock:
                    self._previous = sequence.tokens
                    self._answer_cache.add(request.observation, sequence.tokens)
                # Not for free text, which may be long: it is a decode for each token.
                ends = () if config.free_text else token_ends(self._codec, sequence.tokens, text)
                result = _result(sequence, text, ends, config, trace, first_token_s, actions_at_s, usage)
            yield AnswerUpdate(
                answer=request.answer, tokens=tokens, text=text, actions=actions, usage=usage, result=result
            )

    def _tokens(
        self, answer: _AnswerState, verifier: Verifier, sequence: Sequence, config: EdgeConfig
    ) -> Iterator[Tokens]:
        """Yield committed tokens; without drafts from one on that is not finite, or over budget."""
        drafter, clock = answer.drafter or NoDrafter(), self._clock
        try:
            yield from self._strategy(answer.config).decode(sequence, drafter, verifier, clock, config)
        except TargetNotFinite:
            raise
        except (NotFinite, OverBudget) as error:
            if isinstance(error, NotFinite):
                log.warning("this answer goes on without drafts: %s", NotFinite(error.what, "draft"))
            self._reopen(answer, verifier, sequence)
            yield from strategy(WITHOUT_DRAFTS).decode(sequence, drafter, verifier, clock, config)

    def _reopen(self, answer: _AnswerState, verifier: Verifier, sequence: Sequence) -> None:
        """Open the answer again without drafts, after its committed tokens, which stay as they are."""
        assert answer.request is not None
        number = next(self._numbers)
        verifier.close()
        without_drafts = replace(answer.request, answer=number, strategy=WITHOUT_DRAFTS, draft=None)
        verifier.open(replace(without_drafts, committed=sequence.tokens), answer.tracer)
        if answer.is_cancelled:
            raise Cancelled("the answer was cancelled")  # while no answer was open at the verifier


def _result(
    sequence: Sequence,
    text: str,
    ends: tuple[int, ...],
    config: EngineConfig,
    trace: AnswerTrace,
    first_token_s: float,
    first_action_s: float | None,
    usage: LinkUsage,
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
        usage=usage,
        lossless=config.params.lossless,
        ends=ends,
    )


class FirstDrafted:
    """Reads the first action from drafted tokens. `take` returns it once for each piece of news."""

    def __init__(self, codec: TextCodec) -> None:
        self.preview = DraftPreview(self._read)
        self._codec = codec
        self._new: DraftedAction | None = None

    def take(self) -> DraftedAction | None:
        """Return the first action if the draft has said something new of it."""
        found, self._new = self._new, None
        return found

    def _read(self, tokens: Tokens, chance: float) -> tuple[bool, bool]:
        text = self._codec.decode(tokens)
        if ")" not in text:
            return False, False
        # Only up to the first call's end: what follows it may still be cut off in the middle.
        text = text[: text.index(")") + 1]
        try:
            action = parse_answer(text)[0]
        except ActionParseError:
            return True, False  # no draft that goes on from here says an action
        self._new = DraftedAction(action, text, chance)
        return True, True
