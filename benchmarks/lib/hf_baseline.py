"""`colocated` beside Transformers' own assisted generation: shipped pair, one process, one thread, greedy.

Time is the process's CPU time on one thread, so that whatever else runs on the machine does not count.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as PilImage
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from vlm_spec_decode.bench.pairs import MAX_ANSWER_TOKENS, recorded_prompts
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.models.checkpoint import TRANSFORMERS_LOCK
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.models.prompt import messages

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {
        "num_assistant_tokens": 6,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    },
)
"""Of assisted generation: as it comes, and a constant draft length; the faster one counts."""


@dataclass(frozen=True, slots=True)
class DecodingSpeeds:
    """Tokens a second of CPU time, and whether all answers were the same."""

    ours: float
    assisted: float
    same_tokens: bool
    tokens: int

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.ours / self.assisted


def compare_with_assisted(answers: int) -> DecodingSpeeds:
    """Decode the same questions both ways, in turn, after one to warm up."""
    torch.set_num_threads(1)
    theirs = AssistedGeneration()
    ours = _engine()
    codec_stop = ours[1].stop_ids
    questions = recorded_prompts(answers)
    _ours(*ours, questions[0])
    theirs.answer(questions[0], SETTINGS[0])
    seconds, decoded = [0.0] * (1 + len(SETTINGS)), list[list[Tokens]]()
    for question in questions:
        row = []
        for index, ask in enumerate((lambda q: _ours(*ours, q), *theirs.answer_functions())):
            began_s = time.process_time()
            row.append(ask(question))
            seconds[index] += time.process_time() - began_s
        decoded.append(row)
    count = sum(len(row[0]) for row in decoded)
    same = all(_ended(row[0], codec_stop) == _ended(other, codec_stop) for row in decoded for other in row)
    return DecodingSpeeds(count / seconds[0], count / min(seconds[1:]), same, count)


class AssistedGeneration:
    """The shipped pair as Transformers itself loads and runs it."""

    def __init__(self) -> None:
        load = LlavaForConditionalGeneration.from_pretrained
        with TRANSFORMERS_LOCK:
            self._target = load(shipped("target"), attn_implementation="sdpa").eval()
            self._draft = load(shipped("draft"), attn_implementation="sdpa").eval()
        self._generation = self._draft.generation_config.to_dict()
        self._processor = AutoProcessor.from_pretrained(shipped("target"))

    def answer_functions(self) -> list[Any]:
        """Return one function per setting, question to tokens."""
        return [lambda question, s=settings: self.answer(question, s) for settings in SETTINGS]

    def answer(self, question: Observation, settings: dict[str, Any]) -> Tokens:
        """Return the answer's tokens."""
        assert question.image is not None
        image = PilImage.open(io.BytesIO(question.image.jpeg)).convert("RGB")
        text = self._processor.apply_chat_template(messages(question), add_generation_prompt=True)
        inputs = self._processor(images=image, text=text, return_tensors="pt")
        self._draft.generation_config = GenerationConfig(**{**self._generation, **settings})
        decoded = self._target.generate(
            **inputs, assistant_model=self._draft, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS
        )
        return tuple(decoded[0, inputs["input_ids"].shape[1] :].tolist())


def _engine() -> tuple[Engine, SamplingParams]:
    target, draft = load_model(shipped("target")), load_model(shipped("draft"))
    clock = WallClock()
    params = SamplingParams(max_tokens=MAX_ANSWER_TOKENS, stop_ids=target.codec.stop_ids)
    return Engine(None, target.codec, LocalVerifier(target, clock, draft), clock), params


def _ours(engine: Engine, params: SamplingParams, question: Observation) -> Tokens:
    for update in engine.answer(question, EngineConfig(strategy="colocated", params=params)):
        if update.result:
            return update.result.tokens
    return ()


def _ended(tokens: Tokens, stop_ids: Tokens) -> Tokens:
    """Return an answer up to the token that ends it."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:end]
