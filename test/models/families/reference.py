"""Transformers alone as the reference: its processor, its forward over everything, its `generate`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
)

from test.models.checkpoints import jpeg
from test.models.families.cases import FamilyCase
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.images import decode_jpeg
from vlm_spec_decode.core.ports import GrammarState, Model
from vlm_spec_decode.core.types import AnswerRequest, Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.grammar_mask import MaskedModel
from vlm_spec_decode.decoding.sampling import perturbed_scores
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.encoder import render_prompt
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.grammar import CompiledGrammar, compile_grammar
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.prompt import PromptStyle
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import strategy

SIZES = ((40, 30), (64, 64), (320, 180), (900, 16), (16, 900))
"""Width and height of the pictures: small, square, wide, and extreme in both directions."""

GREEDY = SamplingParams(max_tokens=10)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, top_k=4000, max_tokens=10, seed=11)
SETTINGS = {
    "greedy": (GREEDY, False),
    "sampled": (SAMPLED, False),
    "greedy, grammar": (replace(GREEDY, max_tokens=20), True),
    "sampled, grammar": (replace(SAMPLED, max_tokens=20), True),
}
"""How answers are chosen, and whether they are held to the grammar of actions."""

STRATEGIES = ("speculative", "autoregressive", "hybrid")

Inputs = dict[str, Tensor]


def seen(size: tuple[int, int] | None, text: str = "go to the red chair") -> Observation:
    """Return an observation with a picture of noise of this size, or with none."""
    if size is None:
        return Observation(None, text, ("turn(25)",))
    return Observation(Image(jpeg(*size, seed=size[0]), *size), text, ("turn(25)",))


class Choose(LogitsProcessor):
    """Make `generate` choose as the coupled rule does: legal tokens only, and the noise of the position.

    The greatest of log p_i + g_i is a sample of p (Gumbel-max), so that `generate` itself only takes the
    greatest score. Rows that pad the head are cut.
    """

    def __init__(
        self, params: SamplingParams, start: int, vocab_size: int, grammar: GrammarState | None
    ) -> None:
        self._params, self._start, self._vocab_size, self._grammar = params, start, vocab_size, grammar

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        path = input_ids[0, self._start :].tolist()
        logits = scores[0, : self._vocab_size].numpy().copy()
        if self._grammar is not None:
            # Called once a token, in order: only the last one is new.
            self._grammar = self._grammar.after(path[-1]) if path else self._grammar
            legal = self._grammar.mask()
            assert legal is not None
            logits[~legal] = -np.inf
        chosen = torch.full(scores.shape, -torch.inf, dtype=torch.float64)
        chosen[0, : self._vocab_size] = torch.from_numpy(perturbed_scores(logits, len(path), self._params))
        return chosen


@dataclass(frozen=True)
class Reference:
    """A family's own classes over one checkpoint."""

    case: FamilyCase
    folder: Path
    tokenizer: Any

    @cached_property
    def network(self) -> Any:
        auto = AutoModelForImageTextToText if self.case.sees else AutoModelForCausalLM
        network = auto.from_pretrained(self.folder, attn_implementation="sdpa").eval()
        network.generation_config.eos_token_id = None  # each call says by itself what ends its answer
        return network

    @cached_property
    def images(self) -> Any:
        return AutoImageProcessor.from_pretrained(self.folder, backend="pil")

    @cached_property
    def image_token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.network.config.image_token_id))

    def inputs(self, observation: Observation) -> Inputs:
        """Return what `generate` is given: the processor's ids and tensors, the processor's own expansion."""
        mark = self.case.mark or (self.image_token if self.case.sees else None)
        text = render_prompt(observation, self.tokenizer, PromptStyle.BARE, mark)
        tensors: Inputs = {}
        if self.case.sees and observation.image is not None:
            # Most processors cannot be made without torchvision, for their videos; their code for pictures
            # runs without having been made.
            own = object.__new__(self.case.processor)
            own.__dict__ |= {"image_processor": self.images, "image_token": self.image_token}
            if self.case.attributes is not None:
                own.__dict__ |= self.case.attributes(self)
            settings = getattr(self.case.processor, "images_kwargs", {})
            made = self.images(decode_jpeg(observation.image.jpeg), return_tensors="pt", **settings)
            text = text.replace(str(mark), own.replace_image_token(made, 0))
            known = inspect.signature(type(self.network).forward).parameters
            tensors = {name: tensor for name, tensor in made.items() if name in known}
        bos = self.tokenizer.bos_token
        begun = bool(bos) and text.startswith(bos)
        ids = self.tokenizer(text, add_special_tokens=not begun, return_tensors="pt")["input_ids"]
        return self._with_kinds({"input_ids": ids, **tensors})

    def logits(self, inputs: Inputs, path: Tokens, layers: int = 0) -> npt.NDArray[np.float32]:
        """Return the logits [rows of the head] after `path`, from the first token of the prompt on.

        `layers` cuts the network to its first layers: what an early exit without an adapter says.
        """
        ids = torch.cat([inputs["input_ids"], torch.tensor([path], dtype=torch.long)], dim=1)
        network = self._cut(layers) if layers else self.network
        # No cache: the first layers of a network may all be recurrent, and a cache of those has no length.
        options = {"logits_to_keep": 1, "use_cache": False}
        with torch.inference_mode():
            said = network(**self._with_kinds({**inputs, "input_ids": ids}), **options).logits
        found: npt.NDArray[np.float32] = said[0, -1].float().numpy()
        return found

    def generate(
        self,
        inputs: Inputs,
        params: SamplingParams,
        vocab_size: int,
        grammar: GrammarState | None = None,
    ) -> tuple[Tokens, Tensor]:
        """Return the tokens of Transformers' own loop, and the logits [tokens, rows] it chose them from."""
        start = inputs["input_ids"].shape[1]
        chooser = Choose(params, start, vocab_size, grammar)
        with torch.inference_mode():
            said = self.network.generate(
                **inputs,
                # As tokenizers return it; without it, tokens that also pad would be masked in the prompt.
                attention_mask=torch.ones_like(inputs["input_ids"]),
                max_new_tokens=params.max_tokens,
                do_sample=False,
                eos_token_id=list(params.stop_ids) or None,
                logits_processor=LogitsProcessorList([chooser]),
                output_logits=True,
                return_dict_in_generate=True,
            )
        return tuple(said.sequences[0, start:].tolist()), torch.cat(said.logits)

    def _with_kinds(self, inputs: Inputs) -> Inputs:
        if not self.case.image_kinds:
            return inputs
        kinds = inputs["input_ids"].eq(self.network.config.image_token_id).int()
        return {**inputs, self.case.image_kinds: kinds}

    def _cut(self, layers: int) -> Any:
        cut = copy.copy(self.network)
        cut._modules = dict(self.network._modules)
        cut.model = copy.deepcopy(self.network.model)
        stack = cut.model.get_decoder()
        stack.layers = stack.layers[:layers]
        return cut


@dataclass(frozen=True)
class Loaded:
    """One family's checkpoint in our loop, a draft that is sometimes wrong, and the reference."""

    case: FamilyCase
    folder: Path
    model: VlmModel
    draft: VlmModel
    reference: Reference

    @property
    def vocab_size(self) -> int:
        return self.model.card.vocab_size

    @property
    def sizes(self) -> Seq[tuple[int, int] | None]:
        """The pictures' sizes, None for a prompt without one."""
        return (None, *SIZES) if self.case.sees else (None,)

    @cached_property
    def grammar(self) -> CompiledGrammar:
        """The grammar of actions over this family's vocabulary."""
        return compile_grammar(language(), self.model.codec)

    def wanted(self, observation: Observation, setting: str) -> tuple[Tokens, Tensor]:
        """Return the tokens of Transformers' own loop in a setting, and the logits it chose them from."""
        inputs, params, grammar = self.reference.inputs(observation), *self._setting(setting)
        start = None if grammar is None else grammar.start()
        return self.reference.generate(inputs, params, self.vocab_size, start)

    def said(self, name: str, observation: Observation, setting: str, draft: Model | None = None) -> Tokens:
        """Return what a strategy says in a setting, in one process, with this draft or the family's own."""
        params, grammar = self._setting(setting)
        target, drafter = MaskedModel(self.model, grammar), MaskedModel(draft or self.draft, grammar)
        return answer(name, target, drafter, observation, params)

    def _setting(self, name: str) -> tuple[SamplingParams, CompiledGrammar | None]:
        params, is_held = SETTINGS[name]
        if not is_held:
            return params, None
        return replace(params, stop_ids=self.model.codec.stop_ids), self.grammar


def load_case(case: FamilyCase, folder: Path) -> Loaded:
    """Make the family's checkpoint in `folder` and load it on both sides."""
    case.make(folder)
    model = load_model(f"{folder},prompt=bare,exits=25/50")
    assert isinstance(model, VlmModel)
    return Loaded(case, folder, model, noisy(model), Reference(case, folder, model.encoder.tokenizer))


def noisy(model: VlmModel, by: float = 0.03) -> VlmModel:
    """Return a model of the same checkpoint with noise on its layers: a draft that is right sometimes."""
    noise = torch.Generator().manual_seed(0)
    stack = copy.copy(model.decoder.stack)
    stack._modules = dict(stack._modules)
    stack.layers = copy.deepcopy(model.decoder.stack.layers)
    for weight in stack.layers.parameters():
        if weight.dim() > 1:
            weight.add_(by * torch.randn(weight.shape, generator=noise))
    decoder = replace(model.decoder, stack=stack)
    assert isinstance(decoder, Decoder)
    return VlmModel(model.card, model.codec, decoder, model.encoder)


def answer(
    name: str, target: Model, draft: Model, observation: Observation, params: SamplingParams
) -> Tokens:
    """Return what a strategy says, in one process."""
    verifier, drafter = LocalVerifier(target, WallClock()), draft.open(observation)
    verifier.open(AnswerRequest(1, observation, params, name))
    sequence = Sequence()
    config = EdgeConfig(answer=1, params=params)
    for _ in strategy(name).edge(sequence, drafter, verifier, WallClock(), config):
        pass
    verifier.close()
    drafter.close()
    return sequence.tokens
