"""Checkpoints from a folder or the Hub, checked before they are trusted.

LLaVA-1.5 and 1.6, Qwen2-VL and Qwen2.5-VL, and language-only Llama and Qwen, through Transformers'
own classes. Whatever is wrong with a checkpoint becomes a ModelError of one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import logging as transformers_logging

from vlm_spec_decode.core.errors import ModelError, VocabularyMismatch
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.models.codec import TokenizerCodec
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.encoder import PromptEncoder
from vlm_spec_decode.models.vlm import VlmModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VISION_FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
LANGUAGE_FAMILIES = ("llama", "qwen2", "qwen3")
EXITS_FILE = "exits.safetensors"
"""Optional beside the weights: `layers.<n>.weight` [width, width] and `layers.<n>.bias` per exit layer."""

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def shipped(name: str) -> Path:
    """Return the folder of a checkpoint that comes with the package: "target" or "draft"."""
    folder = Path(__file__).parents[1] / "assets" / name
    if not folder.is_dir():
        raise ModelError(f"no checkpoint {name!r} comes with this package")
    return folder


def assert_same_vocabulary(draft: ModelCard, target: ModelCard) -> None:
    """Raise VocabularyMismatch unless token ids mean the same to both models."""
    ours, theirs = (draft.tokenizer_digest, draft.vocab_size), (target.tokenizer_digest, target.vocab_size)
    if ours != theirs:
        raise VocabularyMismatch(
            f"draft {draft.model_id} ({draft.vocab_size} tokens, {draft.tokenizer_digest}) and target "
            f"{target.model_id} ({target.vocab_size} tokens, {target.tokenizer_digest}) differ in vocabulary"
        )


def load_model(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int = 1,
    model_id: str | None = None,
) -> VlmModel:
    """Load a checkpoint from a folder or, if there is no such folder, by its Hub id.

    `threads` sets torch's threads for the whole process. Raises ModelError in one line if the
    checkpoint is missing, truncated, incomplete or of an architecture that is not supported.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r} (known: {', '.join(DTYPES)})")
    torch.set_num_threads(threads)
    name = model_id or (Path(path_or_id).resolve().name if Path(path_or_id).is_dir() else str(path_or_id))
    with _named(name), _no_progress_bars():
        folder = _resolve(path_or_id, revision)
        config = AutoConfig.from_pretrained(folder)
        _check_family(config)
        network = _weights(folder, config, dtype).to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encoder = _encoder(folder, config, network, tokenizer)
        codec = TokenizerCodec(tokenizer, _stop_ids(folder, tokenizer))
        decoder = Decoder(_stack(network), network.lm_head, _exits(folder, config, network), codec.vocab_size)
        if network.lm_head.weight.shape[0] < codec.vocab_size:
            raise ModelError(f"its tokenizer knows {codec.vocab_size} tokens, more than its head has rows")
        card = ModelCard(
            model_id=name,
            revision=_revision(folder),
            tokenizer_digest=codec.digest,
            prompt_digest=_prompt_digest(encoder),
            vocab_size=codec.vocab_size,
            num_layers=decoder.depth,
            exit_layers=tuple(decoder.exits),
        )
    return VlmModel(card, codec, decoder, encoder)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what loading can raise into a ModelError of one line that names the checkpoint."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"cannot load {name}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load {name}: {reason}") from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep Transformers' bars out of a robot's log; its setting is put back afterwards."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _resolve(path_or_id: str | Path, revision: str | None) -> Path:
    """Return the checkpoint's folder, downloaded first if it is a Hub id."""
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if isinstance(path_or_id, Path) or path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1:
        raise ModelError(f"there is no folder {path_or_id}")
    try:
        return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"no such folder, and the Hub does not give it: {type(error).__name__}") from error


def _check_family(config: Any) -> None:
    """Raise ModelError for an architecture that the decoder loop does not cover."""
    if config.model_type not in VISION_FAMILIES + LANGUAGE_FAMILIES:
        known = ", ".join(VISION_FAMILIES + LANGUAGE_FAMILIES)
        raise ModelError(f"architecture {config.model_type!r} is not supported (known: {known})")
    if hasattr(config, "mm_vision_tower"):
        raise ModelError(
            "it is in the original LLaVA layout; take its conversion, such as llava-hf/llava-1.5-7b-hf"
        )
    text = config.get_text_config()
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ModelError("sliding-window attention is not supported: a tree needs all of its past")


def _weights(folder: Path, config: Any, dtype: str) -> Any:
    """Return the network in evaluation mode. Raises ModelError if a tensor is missing or misshapen."""
    auto = AutoModelForImageTextToText if config.model_type in VISION_FAMILIES else AutoModelForCausalLM
    network, report = auto.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        attn_implementation="sdpa",
        use_safetensors=True,
        output_loading_info=True,
    )
    # Transformers would fill the gaps with random numbers and only warn.
    gaps = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if gaps:
        raise ModelError(f"{len(gaps)} tensors are missing or misshapen, the first is {gaps[0]}")
    return network.eval().requires_grad_(False)


def _stack(network: Any) -> nn.Module:
    stack: nn.Module = network.model.get_decoder()
    return stack


def _exits(folder: Path, config: Any, network: Any) -> dict[int, nn.Linear | None]:
    """Return exit layers, from the config's `exit_layers` and the adapters file, each with its adapter."""
    depth = len(_stack(network).layers)  # type: ignore[arg-type]
    layers = {int(layer) for layer in getattr(config, "exit_layers", None) or ()}
    path = folder / EXITS_FILE
    tensors = load_file(path) if path.is_file() else {}
    layers |= {int(key.split(".")[1]) for key in tensors}
    if not all(0 < layer < depth for layer in layers):
        raise ModelError(f"exit layers {sorted(layers)} do not lie within {depth} layers")
    like = network.lm_head.weight
    return {layer: _adapter(tensors, layer, like) for layer in sorted(layers)}


def _adapter(tensors: dict[str, torch.Tensor], layer: int, like: torch.Tensor) -> nn.Linear | None:
    weight, bias = tensors.get(f"layers.{layer}.weight"), tensors.get(f"layers.{layer}.bias")
    if weight is None:
        return None
    adapter = nn.Linear(like.shape[1], like.shape[1], bias=bias is not None)
    adapter.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return adapter.to(like.device, like.dtype).requires_grad_(False)


def _encoder(folder: Path, config: Any, network: Any, tokenizer: Any) -> PromptEncoder:
    """Return the prompt's encoder; a language-only checkpoint gets one without an image processor."""
    vision = config.model_type in VISION_FAMILIES
    template = folder / "chat_template.json"
    if not tokenizer.chat_template and template.is_file():  # where older processors keep it
        tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
    return PromptEncoder(
        body=network.model,
        tokenizer=tokenizer,
        # Robot and cloud must see the same pixels, whatever else is installed: always the PIL back end.
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil") if vision else None,
        image_token_id=config.image_token_id if vision else None,
        max_tokens=config.get_text_config().max_position_embeddings,
    )


def _stop_ids(folder: Path, tokenizer: Any) -> Tokens:
    """Return the ids that end an answer, by the generation config and the tokenizer."""
    ids: set[int] = set()
    if (folder / "generation_config.json").is_file():
        stop = GenerationConfig.from_pretrained(folder).eos_token_id
        ids.update(stop if isinstance(stop, list) else [stop] if stop is not None else [])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))


def _revision(folder: Path) -> str:
    """Return a hash of configuration and weights: what was loaded, wherever it came from."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _prompt_digest(encoder: PromptEncoder) -> str:
    """Return a hash of what a prompt says: a sample with all that is escaped or cut, rendered without image.

    How a picture becomes tokens is left out: a draft may look more coarsely than its target, or not at all.
    """
    done = tuple(f"forward(0.{i})" for i in range(1, 13))
    sample = Observation(None, "go to the <red> [chair] {now}: slowly\n", done)
    return hashlib.sha256(encoder.render(sample).encode()).hexdigest()[:16]
