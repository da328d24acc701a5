"""Qwen3.5 with its real vocabulary and the shape of its tokenizer, against Transformers' own model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3_5Tokenizer,
)

from test.models import checkpoints
from test.models.test_context import ends_of
from test.models.test_decoding import answer
from test.models.test_grammar import CORPUS
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.errors import Cancelled, ModelError, OutOfMemory
from vlm_spec_decode.core.images import decode_jpeg
from vlm_spec_decode.core.ports import ScoreRequest
from vlm_spec_decode.core.types import Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.delta_net import DeltaPast
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.families.qwen3_5 import RecurrentCache
from vlm_spec_decode.models.grammar import compile_grammar
from vlm_spec_decode.models.loader import load_model

TOKENS, VOCABULARY, PADDED = 248_077, 248_047, 248_320
"""Ids of the tokenizer, those up to the one that ends an answer, and rows of the head."""
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|special_{i}|>" for i in range(6))]
SPECIALS += ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
FIRST_SPECIAL, END_ID = 248_044, 248_046
IMAGE_ID = FIRST_SPECIAL + SPECIALS.index("<|image_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = [(40, 30), (32, 32), (300, 20), (16, 400), (1, 1)]
"""Pictures by width and height, some of them very wide or very high."""


def tokenizer() -> Qwen3_5Tokenizer:
    """Byte-level pieces, then names that no text yields, then special tokens where Qwen3.5 has them."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    vocab = trained.get_vocab()
    vocab |= {f"unused{i}": i for i in range(len(vocab), FIRST_SPECIAL)}
    pieces = sorted(trained.get_vocab(), key=lambda piece: vocab[piece])
    merges = []
    for piece in pieces:
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [(a, b) for a, b in halves if a in vocab and b in vocab][:1]
    made = Qwen3_5Tokenizer(vocab=vocab, merges=merges)
    made.add_special_tokens({"additional_special_tokens": SPECIALS})
    more = [f"<|more_{i}|>" for i in range(TOKENS - len(made))]
    made.add_tokens(more, special_tokens=True)
    made.chat_template, made.eos_token = TEMPLATE, "<|im_end|>"
    return made


def save(folder: Path, network: Any, config: Any, images: bool) -> Path:
    torch.manual_seed(0)
    checkpoints.remembering(network(config)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if images:
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=256, max_pixels=4096).save_pretrained(
            folder
        )
    return folder


def text_settings(**changes: Any) -> dict[str, Any]:
    ids = {"vocab_size": PADDED, "eos_token_id": END_ID, "pad_token_id": FIRST_SPECIAL}
    more = {"num_hidden_layers": 8, "max_position_embeddings": 4096, "initializer_range": 0.2}
    return checkpoints.TEXT | checkpoints.RECURRENT | ids | {"bos_token_id": None} | more | changes


def vision_settings(**changes: Any) -> dict[str, Any]:
    parts = checkpoints.qwen3_5_parts({})
    first = FIRST_SPECIAL
    specials = {
        name: first + SPECIALS.index(f"<|{token}|>")
        for name, token in (
            ("image_token_id", "image_pad"),
            ("video_token_id", "video_pad"),
            ("vision_start_token_id", "vision_start"),
            ("vision_end_token_id", "vision_end"),
        )
    }
    return parts | specials | {"text_config": text_settings(**changes)}


@dataclass(frozen=True)
class Case:
    """Our model beside Transformers'."""

    model: VlmModel
    network: Any

    def inputs(self, observation: Observation) -> dict[str, torch.Tensor]:
        """Return what Transformers' model is given: the ids with a placeholder for every patch."""
        encoder = self.model.encoder
        text = encoder.render(observation)
        if not self.model.sees or observation.image is None:
            ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
            return {"input_ids": ids}
        images = encoder.image_processor
        tensors = dict(images(images=decode_jpeg(observation.image.jpeg), return_tensors="pt"))
        count = int(tensors["image_grid_thw"].prod()) // images.merge_size**2
        text = text.replace("<|image_pad|>", "<|image_pad|>" * count)
        ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
        return {"input_ids": ids, "mm_token_type_ids": ids.eq(IMAGE_ID).int(), **tensors}

    @torch.inference_mode()
    def at_once(self, observation: Observation, path: Tokens) -> np.ndarray:
        """Return Transformers' logits [1 + n, vocab] behind a prompt and its path, fed in one piece."""
        inputs = self.inputs(observation)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([path]).long()], dim=1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = inputs["input_ids"].eq(IMAGE_ID).int()
        logits = self.network(**inputs, logits_to_keep=len(path) + 1).logits
        found: np.ndarray = logits[0, :, :VOCABULARY].float().numpy()
        return found

    @torch.inference_mode()
    def in_steps(self, observation: Observation, path: Tokens) -> np.ndarray:
        """Return the same, the path fed token by token into the cache behind the prompt."""
        if self.model.sees:  # Transformers keeps those of the last picture
            self.network.model.rope_deltas = None
        out = self.network(**self.inputs(observation), use_cache=True, logits_to_keep=1)
        rows = [out.logits[0, -1]]
        for token in path:
            step = {"input_ids": torch.tensor([[token]]), "past_key_values": out.past_key_values}
            out = self.network(**step, use_cache=True)
            rows.append(out.logits[0, -1])
        found: np.ndarray = torch.stack(rows)[:, :VOCABULARY].float().numpy()
        return found

    @torch.inference_mode()
    def generated(self, observation: Observation, count: int, **settings: Any) -> Tokens:
        """Return what Transformers' own `generate` says."""
        inputs = self.inputs(observation)
        suppressed = list(range(VOCABULARY, PADDED))
        said = self.network.generate(
            **inputs, max_new_tokens=count, do_sample=False, suppress_tokens=suppressed, **settings
        )
        return tuple(said[0, inputs["input_ids"].shape[1] :].tolist())


def load(folder: Path, **options: str) -> Case:
    told = "".join(f",{name}={value}" for name, value in options.items())
    model = load_model(f"{folder},prompt=bare{told}")
    assert isinstance(model, VlmModel)
    auto = AutoModelForImageTextToText if model.sees else AutoModelForCausalLM
    dtype = {"bfloat16": torch.bfloat16}.get(options.get("dtype", ""), torch.float32)
    return Case(model, auto.from_pretrained(folder, dtype=dtype).eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VLM's checkpoint, with exits after a recurrent layer, another one and one that attends."""
    config = Qwen3_5Config(**vision_settings(), exit_layers=[1, 3, 4])
    return save(tmp_path_factory.mktemp("qwen3_5") / "m", Qwen3_5ForConditionalGeneration, config, True)


@pytest.fixture(scope="module")
def seeing(folder: Path) -> Case:
    return load(folder)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = Qwen3_5TextConfig(**text_settings())
    return load(save(tmp_path_factory.mktemp("text") / "m", Qwen3_5ForCausalLM, config, False))


def observation(size: tuple[int, int] | None, instruction: str = "go to the red chair") -> Observation:
    if size is None:
        return Observation(None, instruction)
    return Observation(Image(checkpoints.jpeg(*size), *size), instruction)


def tree(rng: np.random.Generator, size: int) -> tuple[Tokens, Tokens]:
    """Return a tree of any ids, those at the end of the vocabulary among them."""
    tokens = rng.integers(0, VOCABULARY - 40, size).tolist()
    if tokens:
        tokens[-1] = VOCABULARY - 1
    return tuple(tokens), tuple(int(rng.integers(max(0, i - 3), i + 1)) for i in range(size))


def error(case: Case, seen: Observation, found: np.ndarray, prefix: Tokens, *nodes: Tokens) -> float:
    """Return the greatest difference between rows of a tree and each path at once."""
    ends = ends_of(prefix, *nodes)
    assert found.shape == (len(ends), VOCABULARY)
    inner, worst = set(nodes[1]) if nodes else set(), 0.0
    for leaf in (path for row, path in enumerate(ends) if row not in inner):
        # A path to a leaf gives the rows of all nodes on it.
        wanted = case.at_once(seen, leaf)
        on_it = [row for row, path in enumerate(ends) if path == leaf[: len(path)]]
        worst = max(worst, *(float(np.abs(found[row] - wanted[len(ends[row])]).max()) for row in on_it))
    return worst


def test_the_checkpoint_has_the_shape_of_the_real_one(seeing: Case) -> None:
    assert len(seeing.model.encoder.tokenizer) == TOKENS
    assert seeing.model.card.vocab_size == VOCABULARY
    assert seeing.network.lm_head.weight.shape[0] == PADDED
    assert seeing.model.encoder.image_token_id == 248_056
    kinds = seeing.network.config.text_config.layer_types
    assert kinds == ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 3 + [
        "full_attention"
    ]


@pytest.mark.parametrize("size", [None, *SIZES])
def test_greedy_answers_are_those_of_generate(seeing: Case, size: tuple[int, int] | None) -> None:
    """Token by token, and by trees that hold the right token, wrong ones, and wrong ones below it."""
    seen, rng = observation(size), np.random.default_rng(0)
    wanted = seeing.generated(seen, 14)
    context = seeing.model.open(seen)
    context.prefill()
    assert context.stats.prompt_tokens == seeing.inputs(seen)["input_ids"].shape[1]
    said: Tokens = ()
    while len(said) < len(wanted):
        said = (*said, int(context.score(said)[0].argmax()))
    assert said == wanted
    guessed = seeing.model.open(seen)
    said = ()
    while len(said) < len(wanted):
        right = wanted[len(said) : len(said) + 3]
        wrong = tuple(rng.integers(0, 1000, 6).tolist())
        tokens, parents = (*wrong[:2], *right, *wrong[2:]), (0, 1, 0, *range(3, 2 + len(right)), 0, 3, 3, 4)
        rows = guessed.score(said, tokens, parents)
        at = 0
        while True:
            said = (*said, int(rows[at].argmax()))
            below = [i + 1 for i, p in enumerate(parents) if p == at and tokens[i] == said[-1]]
            if not below or len(said) == len(wanted):
                break
            (at,) = below
    assert said == wanted
    assert guessed.stats.passes < len(wanted)


def test_a_language_model_alone_says_what_generate_says(blind: Case) -> None:
    seen = observation((40, 30))
    wanted = blind.generated(observation(None), 14)
    context, said = blind.model.open(seen), ()
    while len(said) < len(wanted):
        said = (*said, int(context.score(said)[0].argmax()))
    assert said == wanted


@pytest.mark.parametrize("size", [None, (40, 30), (300, 20)])
def test_trees_are_as_exact_as_the_model_itself(seeing: Case, size: tuple[int, int] | None) -> None:
    """The model's own noise is the difference between a path fed at once and token by token."""
    seen, rng = observation(size), np.random.default_rng(1)
    noise = worst = 0.0
    for _ in range(3):
        prefix, nodes = tree(rng, 3)[0], tree(rng, 14)
        longest = max(ends_of(prefix, *nodes), key=len)
        noise = max(
            noise, float(np.abs(seeing.in_steps(seen, longest) - seeing.at_once(seen, longest)).max())
        )
        context = seeing.model.open(seen)
        # Prompt, prefix and nodes in one pass, then more below one of the leaves.
        worst = max(worst, error(seeing, seen, context.score(prefix, *nodes), prefix, *nodes))
        more = tree(rng, 8)
        worst = max(worst, error(seeing, seen, context.score(longest, *more), longest, *more))
    assert 0 < worst <= 2 * noise
    assert noise < 1e-3


def test_bfloat16_is_as_exact_as_the_model_itself(folder: Path) -> None:
    case, seen, rng = load(folder, dtype="bfloat16"), observation((40, 30)), np.random.default_rng(1)
    noise = worst = 0.0
    for _ in range(4):
        path = tree(rng, 8)[0]
        wanted = case.at_once(seen, path)
        noise = max(noise, float(np.abs(case.in_steps(seen, path) - wanted).max()))
        chain = case.model.open(seen).score((), path, tuple(range(8)))
        worst = max(worst, float(np.abs(chain - wanted).max()))
    assert 0 < worst <= 2 * noise


def test_the_state_behind_the_prompt_counts(seeing: Case) -> None:
    """The control of all comparisons here: forgotten, the same weights say something else."""
    seen = observation((40, 30))
    context = seeing.model.open(seen)
    remembered = context.score((7,), (8,), (0,))
    context.forget()
    context.prefill()
    cache = context._cache
    assert isinstance(cache, RecurrentCache)
    assert sorted(cache.pasts) == [0, 1, 2, 4, 5, 6]
    for past in cache.pasts.values():
        past.state = torch.zeros_like(past.state)
    assert np.abs(context.score((7,), (8,), (0,)) - remembered).max() > 0.1


def test_rejected_drafts_leave_no_trace(seeing: Case) -> None:
    """In no bit: neither drafts of earlier passes, nor what those of the same pass were."""
    seen, rng = observation((40, 30)), np.random.default_rng(2)
    drafted, plain = seeing.model.open(seen), seeing.model.open(seen)
    one, other = seeing.model.open(seen), seeing.model.open(seen)
    prefix: Tokens = ()
    for _ in range(5):
        drafted.score(prefix)
        plain.score(prefix)
        drafted.score(prefix, *tree(rng, int(rng.integers(1, 12))))
        prefix = (*prefix, *tree(rng, 2)[0])
        asked = tree(rng, 5)
        assert np.array_equal(drafted.score(prefix, *asked), plain.score(prefix, *asked))
    assert drafted.stats.tokens > plain.stats.tokens
    assert drafted.kv_bytes == plain.kv_bytes
    prefix = ()
    for _ in range(5):
        (token,), tokens, parents = tree(rng, 1)[0], *tree(rng, 9)
        for context, shift in ((one, 1), (other, 2)):
            context.score(prefix, (token, *(id_ - shift for id_ in tokens)), (0, *parents))
        prefix = (*prefix, token)
        asked = tree(rng, 5)
        assert np.array_equal(one.score(prefix, *asked), other.score(prefix, *asked))


def test_dead_drafts_that_are_kept_come_back_and_are_gathered_away(seeing: Case) -> None:
    """Whoever keeps them may return to them; those that stay and those that go change no logits."""
    seen, rng = observation(None), np.random.default_rng(3)
    opened = seeing.model.open(seen)
    context = VlmContext(opened._decoder, opened._embed_prompt, max_dead=6)
    nodes = ((11, 12, 13, 14), (0, 1, 0, 3))
    first = context.score((), *nodes)
    context.score((13,))
    passes = context.stats.passes
    assert np.array_equal(context.score((11,), (12,), (0,)), first[[1, 2]])
    assert context.stats.passes == passes
    for token in (11, 12, 15):
        more = tree(rng, 9)
        assert error(seeing, seen, context.score((token,), *more), (token,), *more) < 1e-3
    assert context.stats.gathers > 0


def test_sessions_share_passes_with_prompts_and_without(seeing: Case) -> None:
    sizes = [None, (40, 30), (300, 20)]
    seen, rng = [observation(size, f"go to {size}") for size in sizes], np.random.default_rng(4)
    contexts = [seeing.model.open(one) for one in seen]
    prefixes: list[Tokens] = [()] * 3
    for turn in range(3):
        trees = [tree(rng, int(rng.integers(0, 8))) for _ in range(turn + 1)]
        asked = [ScoreRequest(contexts[i], prefixes[i], *trees[i]) for i in range(turn + 1)]
        for i, found in enumerate(seeing.model.score_batch(asked)):
            rows = as_choices(found).logits
            assert error(seeing, seen[i], rows, prefixes[i], *trees[i]) < 1e-3
            prefixes[i] = ends_of(prefixes[i], *trees[i])[-1]


@pytest.mark.parametrize("prefilled", [False, True])
@pytest.mark.parametrize("layer", [0, 2, 3, 5])
def test_a_state_that_does_not_fit_is_named_and_harms_nobody(
    seeing: Case, monkeypatch: pytest.MonkeyPatch, prefilled: bool, layer: int
) -> None:
    """The pass breaks in any layer, after the first session's rows have been added there."""
    seen = observation((40, 30))
    contexts = [seeing.model.open(seen) for _ in range(3)]
    if prefilled:
        for context in contexts:
            context.score((5,), (6, 7), (0, 0))
    held = [context.kv_bytes for context in contexts]
    block = seeing.model.decoder.stack.layers[layer]
    asked = [ScoreRequest(context, (5,), (8, 9), (0, 1)) for context in contexts]
    calls = 0

    def breaking(original: Any, at: int) -> Any:
        """Return what does as `original` does until its call number `at` finds no room."""

        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise torch.OutOfMemoryError("no room")
            return original(*arguments, **options)

        return run

    with monkeypatch.context() as patched:
        if hasattr(block, "linear_attn"):
            # Of three sessions the second one, in this layer: the recurrent ones below have had all three.
            below = seeing.model.decoder.family.layer_types[:layer].count("linear_attention")
            name = "extend" if prefilled else "__init__"
            patched.setattr(DeltaPast, name, breaking(getattr(DeltaPast, name), 3 * below + 2))
        else:
            patched.setattr(block, "forward", breaking(block.forward, 1))
        with pytest.raises(OutOfMemory, match="out of memory"):
            seeing.model.score_batch(asked)
    assert [context.kv_bytes for context in contexts] == (held if prefilled else [0, 0, 0])
    untouched = seeing.model.open(seen)
    if prefilled:
        untouched.score((5,), (6, 7), (0, 0))
    alone = untouched.score((5,), (8, 9), (0, 1))
    for found in seeing.model.score_batch(asked):
        np.testing.assert_allclose(as_choices(found).logits, alone, atol=1e-3)


def test_exits_are_read_on_the_way_and_may_end_the_pass(seeing: Case) -> None:
    seen, heard = observation((40, 30)), []
    context = seeing.model.open(seen)
    context.score((7,))

    def stop(layer: int, _choices: Any) -> None:
        heard.append(layer)
        if layer == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        context.score((7,), (8, 9), (0, 1), on_exit=stop)
    assert heard == [1, 3]
    rows = []
    nodes = ((9, 8), (0, 0))
    found = context.score((7,), *nodes, on_exit=lambda layer, logits: rows.append((layer, logits)))
    assert error(seeing, seen, found, (7,), *nodes) < 1e-3
    inputs = seeing.inputs(seen)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[7, 9]])], dim=1)
    inputs["mm_token_type_ids"] = inputs["input_ids"].eq(IMAGE_ID).int()
    with torch.inference_mode():
        states = seeing.network(**inputs, output_hidden_states=True).hidden_states
        for layer, logits in rows:
            stack = seeing.network.model.language_model
            wanted = seeing.network.lm_head(stack.norm(states[layer][0, -1]))[:VOCABULARY].numpy()
            np.testing.assert_allclose(logits[1], wanted, atol=1e-3)
    assert [layer for layer, _ in rows] == [1, 3, 4]


def test_bytes_of_states_and_nodes_are_counted_and_freed(seeing: Case) -> None:
    seen = observation(None)
    context = seeing.model.open(seen)
    context.prefill()
    config = seeing.network.config.text_config
    heads, key_heads = config.linear_num_value_heads, config.linear_num_key_heads
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    channels = 2 * key_heads * key + heads * value
    columns = 2 * 2 * config.num_key_value_heads * config.head_dim * 4
    states = 6 * (4 * (heads * key * value + 3 * channels) + 8 * heads)
    per_node = 6 * (4 * (channels + key_heads * key + heads * value) + 8 * heads)
    behind_prompt = context.kv_bytes
    assert behind_prompt >= states + columns * context.stats.prompt_tokens
    before = context.score((), *((11, 12, 13), (0, 1, 1)))
    grown = context.kv_bytes - behind_prompt
    assert grown >= 3 * per_node
    cache = context._cache
    assert isinstance(cache, RecurrentCache)
    assert sum(past.nbytes for past in cache.pasts.values()) == states + 3 * per_node
    context.forget()
    assert context.kv_bytes == 0
    np.testing.assert_allclose(context.score((), *((11, 12, 13), (0, 1, 1))), before, atol=1e-3)


def test_a_long_answer_stays_as_exact(seeing: Case) -> None:
    """Two hundred tokens in passes of several sizes; nothing is folded into the state on the way."""
    seen, rng = observation(None), np.random.default_rng(5)
    path = tuple(rng.integers(0, VOCABULARY - 40, 200).tolist())
    wanted = seeing.at_once(seen, path)
    noise = np.abs(seeing.in_steps(seen, path) - wanted).max()
    context, at = seeing.model.open(seen), 0
    while at < len(path):
        step = min(int(rng.integers(1, 12)), len(path) - at)
        rows = context.score(path[:at], path[at : at + step], tuple(range(step)))
        assert np.abs(rows - wanted[at : at + step + 1]).max() <= 2 * noise
        at += step


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_speculation_says_what_plain_decoding_says(folder: Path, seeing: Case, temperature: float) -> None:
    """A draft that is right some of the time, sampled and greedy, in chains and in trees."""
    draft = load(folder).model
    generator = torch.Generator().manual_seed(0)
    for weight in draft.decoder.stack.parameters():
        weight.data += 0.003 * torch.randn(weight.shape, generator=generator)
    params = SamplingParams(temperature, max_tokens=16, seed=1)
    plain, steps, _ = answer("autoregressive", seeing.model, draft, params)
    for name in ("speculative", "hybrid"):
        tokens, verified, _ = answer(name, seeing.model, draft, params)
        assert tokens == plain, name
        assert verified.passes < steps.passes, name


def test_answers_in_a_grammar_are_those_of_generate(seeing: Case) -> None:
    """Masks over all 248,077 ids; Transformers is told the same legal ids."""
    grammar = compile_grammar(language(), seeing.model.codec)
    seen = observation((40, 30))
    prompt = seeing.inputs(seen)["input_ids"].shape[1]

    def legal(_batch: int, ids: torch.Tensor) -> list[int]:
        state: Any = grammar.start()
        for token in ids[prompt:].tolist():
            state = state.after(token)
        mask = state.mask()
        return [END_ID] if mask is None else np.flatnonzero(mask).tolist()

    wanted = seeing.generated(seen, 16, prefix_allowed_tokens_fn=legal)
    context, said, state = seeing.model.open(seen), (), grammar.start()
    while len(said) < len(wanted):
        mask = state.mask()
        assert mask is not None
        rows = context.score(said, *tree(np.random.default_rng(len(said)), 4))
        said = (*said, int(np.where(mask, rows[0], -np.inf).argmax()))
        state = state.after(said[-1])
    assert said == wanted


def test_a_mixture_of_experts_says_what_generate_says(tmp_path: Path) -> None:
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    config = Qwen3_5MoeConfig(**vision_settings(**experts))
    case = load(save(tmp_path / "m", Qwen3_5MoeForConditionalGeneration, config, True))
    seen = observation((300, 20))
    wanted = case.generated(seen, 10)
    context, said = case.model.open(seen), ()
    while len(said) < len(wanted):
        rows = context.score(said, *tree(np.random.default_rng(len(said)), 4))
        said = (*said, int(rows[0].argmax()))
    assert said == wanted


def test_a_model_called_as_a_whole_does_what_it_did_before(seeing: Case) -> None:
    """Training and references call Transformers' own forward on the same network."""
    seen = observation((40, 30))
    ours = replace(seeing, network=seeing.model.encoder.body)
    inputs = ours.inputs(seen)
    with torch.inference_mode():
        found = ours.network(**inputs).last_hidden_state
        wanted = seeing.network.model(**inputs).last_hidden_state
    assert torch.equal(found, wanted)


def test_a_near_relative_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_next"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="'qwen3_next' is not supported: its delta nets lay"):
        load_model(tmp_path)
