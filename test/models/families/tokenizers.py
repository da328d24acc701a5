"""Tokenizers of the size and shape that the families' checkpoints have, from the vocabularies in two wheels.

`dashscope` carries Qwen's ranks (151,643), `mistral-common` a SentencePiece model (32,000) and Tekken's ranks
(131,072 with its special tokens). Gemma's 262,144 ids are Qwen's ranks behind Gemma's own special tokens, and
ids that stand for nothing; Qwen3.5's are Qwen's ranks, and names that no text yields. SmolLM2's vocabulary is
in no wheel: its place is taken by the first ranks of Qwen's, as many as SmolLM2 has, behind SmolLM2's own
special tokens.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges, import_protobuf

QWEN2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN2_VL = (
    *QWEN2,
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOOLS = ("<tool_call>", "</tool_call>")
CODE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
THOUGHTS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
SMOL = (
    *QWEN2,
    *("<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>"),
    *("<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>"),
    *("<jupyter_output>", "<jupyter_script>", "<empty_output>"),
)
SMOL_SIZE = 49_152
QWEN3_5_SIZE = 248_044
"""Ids before the special ones."""
SMOLVLM = (
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    *(f"<|reserved_special_token_{i}|>" for i in range(88)),
    "<end_of_utterance>",
)

TEKKEN = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *(f"<SPECIAL_{i}>" for i in range(14, 1000)),
)

CONTENT = (
    "{%% if m['content'] is string %%}{{ m['content'] }}{%% else %%}{%% for part in m['content'] %%}"
    "{%% if part['type'] == 'image' %%}%s{%% else %%}{{ part['text'] }}{%% endif %%}"
    "{%% endfor %%}{%% endif %%}"
)
CHATML = (
    "{%% for m in messages %%}<|im_start|>{{ m['role'] }}\n"
    + CONTENT
    + "<|im_end|>\n{%% endfor %%}{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
"""The form of Qwen's templates; what stands for a picture differs."""

INSTRUCTION = "{{ bos_token }}{%% for m in messages %%}[INST]" + CONTENT + "[/INST]{%% endfor %%}"
"""The form of Mistral's."""

GEMMA_TURNS = (
    "{{ bos_token }}{%% for m in messages %%}<start_of_turn>user\n"
    + CONTENT
    + "<end_of_turn>\n{%% endfor %%}{%% if add_generation_prompt %%}<start_of_turn>model\n{%% endif %%}"
)
"""The form of Gemma's."""


def _file(package: str, name: str) -> Path:
    """Return a file of a wheel without importing the wheel."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install 'vlm_spec_decode[dev]'")
    return Path(found.submodule_search_locations[0]) / name


def _byte_level(ranks: Mapping[bytes, int], first: Seq[str], size: int = 0, **settings: Any) -> str:
    """Return a byte-level BPE as tokenizers' JSON: `first`, then the ranks, at most `size` ids in all."""
    # A rank is only ever merged from lower ones, so that the first of them are a BPE of their own.
    shifted = {t: rank + len(first) for t, rank in ranks.items() if not size or rank < size - len(first)}

    class Converter(TikTokenConverter):  # type: ignore[misc]
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return shifted

    found = json.loads(Converter(vocab_file="", **settings).converted().to_str())
    found["model"]["vocab"] |= {token: i for i, token in enumerate(first)}
    return json.dumps(found)


def qwen_ranks() -> dict[bytes, int]:
    """Return the bytes of Qwen's 151,643 tokens with their ids."""
    path = str(_file("dashscope", "resources/qwen.tiktoken"))
    ranks: dict[bytes, int] = TikTokenConverter.load_tiktoken_bpe(path)
    return ranks


@cache
def _qwen() -> str:
    return _byte_level(qwen_ranks(), ())


@cache
def _qwen3_5() -> str:
    found = json.loads(_qwen())
    vocabulary = found["model"]["vocab"]
    vocabulary |= {f"unused{i}": i for i in range(len(vocabulary), QWEN3_5_SIZE)}
    return json.dumps(found)


@cache
def _smol() -> str:
    return _byte_level(qwen_ranks(), SMOL, SMOL_SIZE)


def _fast(document: str, special: Seq[str], plain: Seq[str] = (), **settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer with added tokens behind its vocabulary (or where they lie in it), in this order."""
    backend = Tokenizer.from_str(document)
    for token in special:
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    for token in plain:
        backend.add_tokens([AddedToken(token, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings)


def qwen(
    special: Seq[str] = QWEN2_VL, plain: Seq[str] = (), more: Seq[str] = (), image: str = "", **settings: Any
) -> PreTrainedTokenizerFast:
    """Return Qwen's tokenizer: 151,643 ranks, then `special`, `plain` (not special) and `more` tokens.

    `image` is what the chat template writes for a picture.
    """
    ends: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    found = _fast(_qwen(), special, plain, **ends | settings)
    if more:
        found.add_tokens([AddedToken(token, normalized=False, special=True) for token in more])
    found.chat_template = CHATML % image
    return found


def qwen3_5(image: str = "") -> PreTrainedTokenizerFast:
    """Return a tokenizer in Qwen3.5's shape: special tokens from 248,044 on, `<|image_pad|>` is 248,056."""
    ends: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    found = _fast(_qwen3_5(), QWEN2_VL, (*TOOLS, *CODE, *THOUGHTS), **ends)
    found.chat_template = CHATML % image
    return found


def smol(more: Seq[str] = (), **settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer in SmolLM2's shape (49,152 ids), with `more` special tokens behind it."""
    ends: dict[str, Any] = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    found = _fast(_smol(), [*SMOL, *more], **ends | settings)
    found.chat_template = CHATML % ""
    return found


@cache
def _sentencepiece() -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = import_protobuf().ModelProto()
    model.ParseFromString(_file("mistral_common", "data/tokenizer.model.v1").read_bytes())
    scores = {piece.piece: piece.score for piece in model.pieces}
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    return vocabulary, generate_merges(vocabulary, scores)


def sentencepiece(more: Seq[str] = (), image: str = "") -> PreTrainedTokenizerFast:
    """Return Mistral's SentencePiece tokenizer (32,000 ids), with `more` special tokens behind it."""
    vocabulary, merges = _sentencepiece()
    found = LlamaTokenizer(vocab=dict(vocabulary), merges=list(merges))
    found.add_special_tokens({"pad_token": "<unk>"})
    if more:
        found.add_tokens([AddedToken(token, normalized=False, special=True) for token in more])
    found.chat_template = INSTRUCTION % image
    return found


@cache
def _tekken() -> str:
    found = json.loads(_file("mistral_common", "data/tekken_240911.json").read_text(encoding="utf-8"))
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in found["vocab"]}
    pattern, size = found["config"]["pattern"], found["config"]["default_vocab_size"]
    return _byte_level(ranks, TEKKEN, size, pattern=pattern)


def tekken(image: str = "[IMG]") -> PreTrainedTokenizerFast:
    """Return Mistral's Tekken tokenizer: 131,072 ids, a thousand special ones first."""
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    found = _fast(_tekken(), TEKKEN, **marks)
    found.chat_template = INSTRUCTION % image
    return found


GEMMA = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
    *(f"<unused{i}>" for i in range(100)),
    *("<start_of_turn>", "<end_of_turn>"),
)
GEMMA_SIZE = 262_144


@cache
def _gemma() -> str:
    document = json.loads(_byte_level(qwen_ranks(), GEMMA))
    vocabulary = document["model"]["vocab"]
    used = set(vocabulary.values())
    vocabulary |= {f"<unused{i}>": i for i in range(GEMMA_SIZE) if i not in used}
    return json.dumps(document)


def gemma(marks: Mapping[int, str], image: str = "", more: Seq[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer in Gemma's shape: 262,144 ids with `marks` in their places, then `more`."""
    document = json.loads(_gemma())
    vocabulary = document["model"]["vocab"]
    for i, mark in marks.items():
        del vocabulary[f"<unused{i}>"]
        vocabulary[mark] = i
    ends = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    found = _fast(json.dumps(document), [*GEMMA, *marks.values(), *more], **ends)
    found.chat_template = GEMMA_TURNS % image
    return found
