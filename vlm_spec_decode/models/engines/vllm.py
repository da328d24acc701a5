"""vLLM as the target's engine: chains of drafts verified in vLLM's own passes, in a process of its own.

What is gained: the language models and VLMs whose prompt we know how to write, run by vLLM, with tensor
parallelism, quantised checkpoints (FP8, AWQ, GPTQ), paged and shared KV. What is not there: trees (a session
sends the best chain of one instead), early exits, the `rejection` rule. `models.engines.vllm_host` is the
other process.

A pass goes in two steps of ours. `VllmModel.score_batch` lets vLLM read the prompts of new answers. What it
returns are questions, not logits: `ChainChoices` learn which ids are legal and by which rule to choose, and
all of a pass are sent together when the first of them is asked (`Choices.prefetch`).
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import msgspec

from vlm_spec_decode.core.choices import Choices, Distribution, LegalTokens, Logits, Ranking
from vlm_spec_decode.core.errors import (
    EngineStopped,
    ImageError,
    InstructionError,
    ModelError,
    NotFinite,
    OutOfMemory,
    VsdError,
)
from vlm_spec_decode.core.load_progress import in_background
from vlm_spec_decode.core.ports import (
    ExitHook,
    ModelCard,
    ModelContext,
    OnExit,
    Rows,
    Scored,
    ScoreRequest,
    Tree,
)
from vlm_spec_decode.core.types import UNKNOWN_LIMITS, Observation, SamplingParams, Tokens
from vlm_spec_decode.models.checkpoint import fingerprint, prompt_style
from vlm_spec_decode.models.encoder import check_placeholders, render_prompt, tokenize_prompt
from vlm_spec_decode.models.engines import vllm_messages as wire
from vlm_spec_decode.models.engines.base import Engine, LoadedModel, LoadOptions
from vlm_spec_decode.models.engines.torch_loop import check_image_token, read_vocabulary
from vlm_spec_decode.models.engines.vllm_process import VllmProcess
from vlm_spec_decode.models.families.base import Family
from vlm_spec_decode.models.prompt import PromptStyle, prompt_digest
from vlm_spec_decode.models.tokenizer import TokenizerCodec
from vlm_spec_decode.models.vocabulary import tell_vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """An answer's prompt as vLLM takes it: one placeholder for the picture, and the picture."""

    ids: Tokens
    jpeg: bytes


NO_PROMPT = Prompt((), b"")
"""Of an answer that vLLM has."""


class VllmContext(ModelContext):
    """One answer in vLLM. `said` are the tokens that vLLM holds of it, `life` is the process that does."""

    __slots__ = ("answer", "life", "model", "prompt", "said")

    def __init__(self, model: VllmModel, answer: int, prompt: Prompt) -> None:
        self.model = model
        self.answer = answer
        self.prompt: Prompt | None = prompt
        self.said: Tokens = ()
        self.life = 0

    @property
    def verifies_trees(self) -> bool:
        """False: vLLM verifies one chain."""
        return False

    def choose(
        self,
        prefix: Tokens,
        tree: Tree = ((), ()),
        on_exit: OnExit = None,  # noqa: ARG002
        rows: Rows = None,
    ) -> ChainChoices:
        """Return what answers for the rows. Raises ModelError for a tree."""
        (found,) = self.model.score_batch([ScoreRequest(self, prefix, *tree, rows=rows)])
        if isinstance(found, VsdError):
            raise found
        assert isinstance(found, ChainChoices)
        return found

    def score(
        self,
        prefix: Tokens,
        tokens: Tokens = (),
        parents: Tokens = (),
        *,
        on_exit: ExitHook | None = None,
    ) -> Logits:
        """Raise ModelError: vLLM's logits stay where they are."""
        return self.choose(prefix, (tokens, parents), on_exit).logits

    def prefill(self) -> None:
        """Let vLLM read the prompt."""
        self.choose(())

    @property
    def kv_bytes(self) -> int:
        """About the memory of the prompt and of what was said, in vLLM's cache."""
        if self.prompt is None or not self.life:
            return 0
        return (len(self.prompt.ids) + len(self.said)) * self.model.token_bytes

    def forget(self) -> None:
        """Free the cache; vLLM reads the answer again when it is asked for."""
        if self.life:
            self.model.process.tell(wire.Forget(self.answer), self.life)

    def close(self) -> None:
        """Free all that vLLM holds of the answer. Idempotent."""
        if self.prompt is not None and self.life:
            self.model.process.tell(wire.Close(self.answer), self.life)
        self.prompt, self.life = None, 0

    def rows(self, prefix: Tokens, drafts: Tokens, life: int) -> wire.Rows:
        """Return how to ask for the rows of `drafts` below `prefix`, without the rule. Raises ModelError."""
        if self.prompt is None:
            raise ModelError("this answer has been closed")
        if self.life and (self.life != life or prefix[: len(self.said)] != self.said):
            # Another process, or an answer that went on in another way: vLLM starts it anew.
            if self.life == life:
                self.model.process.tell(wire.Close(self.answer), life)
            self.life, self.said, self.answer = 0, (), self.model.next_answer()
        prompt = NO_PROMPT if self.life else self.prompt
        tokens = prefix[len(self.said) :] + drafts
        return wire.Rows(answer=self.answer, prompt=prompt.ids, jpeg=prompt.jpeg, tokens=tokens)


@dataclass(frozen=True, slots=True)
class ChainChoices(Choices):
    """The rows of one answer's chain [1 + n], which vLLM answers when the first is asked for.

    Only the `coupled` rule's questions have answers; all others raise ModelError. `passing` are the questions
    of one pass, asked together.
    """

    context: VllmContext
    prefix: Tokens
    drafts: Tokens
    passing: Passing
    allowed: tuple[LegalTokens | None, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.drafts) + 1

    def part(self, start: int, end: int) -> ChainChoices:  # noqa: ARG002
        """Raise ModelError: the rows of a chain are asked for together."""
        self._refuse()

    def legal(self, allowed: Seq[LegalTokens | None]) -> ChainChoices:
        """Return the same rows with only some ids allowed."""
        for tokens in allowed:
            if tokens is not None:
                tokens.check(self.context.model.card.vocab_size)
        return replace(self, allowed=tuple(allowed))

    def pick(self, rows: Seq[int], positions: Seq[int], params: SamplingParams) -> list[int]:
        """Choose the token after each row that a walk down the chain reaches; ModelError for others."""
        if any(position != len(self.prefix) + row for row, position in zip(rows, positions, strict=True)):
            raise ModelError("vLLM chooses the tokens of an answer in their own places only")
        said = self.passing.said(self, params)
        if max(rows, default=0) >= len(said):
            raise ModelError("vLLM says nothing of the rows below a draft that it rejects")
        return [said[row] for row in rows]

    def prefetch(self, positions: Seq[int], params: SamplingParams) -> Callable[[], None]:  # noqa: ARG002
        """Add this answer to the pass; return what runs it."""
        self.passing.add(self, params)
        return self.passing.run

    def ranked(
        self, rows: Seq[int], positions: Seq[int], params: SamplingParams, count: int, *, summed: bool = True
    ) -> list[Ranking]:
        """Return the token of each row alone. Raises ModelError for more than one, or for its share."""
        if count != 1 or summed:
            self._refuse()
        return [Ranking((token,), (0.0,), float("nan")) for token in self.pick(rows, positions, params)]

    def confidence(self, row: int, token: int) -> tuple[float, bool]:  # noqa: ARG002
        """Raise ModelError."""
        self._refuse()

    @property
    def logits(self) -> Logits:
        """Raise ModelError."""
        self._refuse()

    def distribution(self, row: int, params: SamplingParams, unit: int) -> Distribution:  # noqa: ARG002
        """Raise ModelError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError("vLLM tells which token follows, and nothing else of a row")

    def asked(self, params: SamplingParams, life: int) -> wire.Rows:
        """Return the question: what is known already, then the drafts. Raises ModelError."""
        rows = self.context.rows(self.prefix, self.drafts, life)
        known = len(rows.tokens) - len(self.drafts)
        legal: tuple[bytes | None, ...] = ()
        if known or any(each is not None for each in self.allowed):
            # What has been committed is the only legal token of its row: vLLM then says it, whatever the
            # grammar or the rule by which it was once chosen.
            only = [_only(token, self.context.model.card.vocab_size) for token in rows.tokens[:known]]
            masks = [None if each is None else each.bits.tobytes() for each in self.allowed]
            legal = (*only, *(masks or [None] * len(self)))
        return msgspec.structs.replace(rows, legal=legal, params=params)


def _only(token: int, vocab_size: int) -> bytes:
    bits = bytearray(-(-vocab_size // 8))
    bits[token >> 3] = 1 << (token & 7)
    return bytes(bits)


@dataclass(slots=True, eq=False)
class Passing:
    """The questions of one pass. They go to vLLM together, once, when the first answer is needed."""

    model: VllmModel
    _asked: dict[int, tuple[ChainChoices, SamplingParams]] = field(default_factory=dict)
    _found: dict[int, Tokens | VsdError] = field(default_factory=dict)

    def add(self, choices: ChainChoices, params: SamplingParams) -> None:
        """Add a question, unless it has been answered."""
        key = id(choices.context)
        if key not in self._found:
            self._asked[key] = choices, params

    def run(self) -> None:
        """Ask all questions that have been added and not yet asked. Raises EngineStopped."""
        asked, self._asked = self._asked, {}
        if not asked:
            return
        try:
            found = self.model.verify([*asked.values()])
        except EngineStopped as error:
            # Also for the others, so that none of them asks once more by itself.
            self._found |= dict.fromkeys(asked, error)
            raise
        self._found |= dict(zip(asked, found, strict=True))

    def said(self, choices: ChainChoices, params: SamplingParams) -> Tokens:
        """Return the tokens after the rows of one answer, as far as its drafts are right.

        Raises what has gone wrong with this answer.
        """
        self.add(choices, params)
        self.run()
        found = self._found[id(choices.context)]
        if isinstance(found, VsdError):
            raise found
        return found


class VllmModel(LoadedModel):
    """A checkpoint that vLLM runs in another process, which is started again if it ends."""

    def __init__(
        self,
        card: ModelCard,
        codec: TokenizerCodec,
        family: Family,
        style: PromptStyle,
        process: VllmProcess,
    ) -> None:
        super().__init__(card, codec)
        self.process = process
        self._family = family
        self._style = style
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def sees(self) -> bool:
        """Whether it has a vision tower."""
        return self._family.sees

    @property
    def is_ready(self) -> bool:
        """Whether the process runs."""
        return self.process.is_running

    @property
    def token_bytes(self) -> int:
        """Memory of one token's KV."""
        return self.process.token_bytes

    def next_answer(self) -> int:
        """Return a number that no answer has had."""
        return next(self._numbers)

    def open(self, observation: Observation) -> VllmContext:
        """Start one answer; vLLM hears of it with the first pass.

        Raises ImageError or InstructionError, EngineStopped while the process is started again.
        """
        self.process.check()
        mark = self._family.image_mark if self._family.sees else None
        text = render_prompt(observation, self._family.tokenizer, self._style, mark)
        ids = tokenize_prompt(self._family.tokenizer, text)
        seen = observation.image if self._family.sees else None
        check_placeholders(ids, self._family.image_token_id, 0 if seen is None else 1)
        return VllmContext(self, self.next_answer(), Prompt(tuple(ids), seen.jpeg if seen else b""))

    def score_batch(self, requests: Seq[ScoreRequest]) -> list[Scored]:
        """Let vLLM read the prompts of new answers; return what answers for the rows of all.

        Raises EngineStopped, for all, if the process ends.
        """
        passing, found = Passing(self), list[Scored]()
        for request in requests:
            context = request.context
            assert isinstance(context, VllmContext)
            if request.parents != tuple(range(len(request.tokens))):
                found.append(ModelError("vLLM verifies chains, no trees"))
            elif context.prompt is None:
                found.append(ModelError("this answer has been closed"))
            else:
                found.append(ChainChoices(context, request.prefix, request.tokens, passing))
        self._read([each for each in found if isinstance(each, ChainChoices)], found)
        return found

    def verify(self, asked: Seq[tuple[ChainChoices, SamplingParams]]) -> list[Tokens | VsdError]:
        """Run one pass over the rows of many answers; return what each says below its prefix.

        Raises EngineStopped if the process ends.
        """
        with self._lock:
            life = self.process.life
            questions = [choices.asked(params, life) for choices, params in asked]
            said = self.process.run(questions, life)
            return [
                _learned(choices.context, question, answer, life, len(choices.drafts))
                for (choices, _), question, answer in zip(asked, questions, said, strict=True)
            ]

    def _read(self, new: Seq[ChainChoices], found: list[Scored]) -> None:
        """Let vLLM read the prompts that it does not have, in steps that all share."""
        with self._lock:
            life = self.process.life
            unread = [each for each in new if each.context.life != life]
            if not unread:
                return
            questions = [each.context.rows((), (), life) for each in unread]
            for each, said in zip(unread, self.process.run(questions, life), strict=True):
                if said.error:
                    found[found.index(each)] = _error(said.error)
                else:
                    each.context.life = life


def _learned(
    context: VllmContext, question: wire.Rows, said: wire.Said, life: int, drafts: int
) -> Tokens | VsdError:
    """Note what vLLM now holds of an answer; return what it says below the answer's prefix."""
    if said.error:
        context.life, context.said = 0, ()
        context.answer = context.model.next_answer()
        return _error(said.error)
    context.life, context.said = life, context.said + said.tokens
    return said.tokens[len(question.tokens) - drafts :]


def _error(reason: str) -> VsdError:
    match reason:
        case "not_finite":
            return NotFinite("the target's logits")
        case "out_of_memory":
            return OutOfMemory("vLLM's cache has no room for this answer")
        case "too_long":
            return InstructionError("prompt and answer leave no room in the model's positions")
        case "image":
            return ImageError("vLLM cannot read the picture")
    return ModelError(f"vLLM: {reason}")


class Vllm(Engine):
    """Loads a checkpoint in vLLM, in the environment that `make setup-vllm` makes."""

    name = "vllm"

    def load(self, model_id: str, source: str | Path, options: LoadOptions) -> VllmModel:
        """Start vLLM with the checkpoint; read tokenizer and prompt here. Raises ModelError."""
        if options.quantize != "none":
            raise ModelError(
                "vLLM reads from the checkpoint how it is quantised: name a quantised checkpoint"
            )
        if options.exits:
            raise ModelError("vLLM has no early exits")
        log.warning(
            "vLLM verifies chains and has no early exits: of the trees of hybrid and multi_branch it gets "
            "the best chain, and early_exit drafts as speculative does"
        )
        family, codec, vocabulary = read_vocabulary(model_id, source, options)
        tell_vocabulary(vocabulary)
        revision = in_background(lambda: fingerprint(family.folders))
        if family.sees:
            check_image_token(family)
        text = family.config.get_text_config()
        process = VllmProcess(
            wire.LoadCheckpoint(
                folder=str(family.source.folder),
                dtype=options.dtype,
                device=options.device,
                vocab_size=codec.vocab_size,
                sees=family.sees,
                tensor_parallel=options.tensor_parallel,
                kv_bytes=options.kv_mib << 20,
                answers=options.answers,
            )
        )
        process.start()
        style = prompt_style(family.source, family.tokenizer)
        card = ModelCard(
            model_id=model_id,
            revision=revision.result(),
            tokenizer_digest=codec.digest,
            prompt_digest=prompt_digest(style),
            vocab_size=codec.vocab_size,
            num_layers=text.num_hidden_layers,
            image_limits=family.image_limits(family.image_processor()) if family.sees else UNKNOWN_LIMITS,
            rules=("coupled",),
        )
        return VllmModel(card, codec, family, style, process)


ENGINE = Vllm()
