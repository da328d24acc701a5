"""Checkpoints from a folder or the Hub, checked before they are trusted.

LLaVA-1.5 and 1.6 (also in the original repository's layout), Qwen2-VL and Qwen2.5-VL, and language-only
Llama and Qwen, through Transformers' own classes. Whatever is wrong with a checkpoint becomes a ModelError
of one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from vlm_spec_decode.core.assets import ASSETS
from vlm_spec_decode.core.errors import ModelError, VocabularyMismatch
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.models.checkpoint import llava_original as originals
from vlm_spec_decode.models.checkpoint.builders import (
    LANGUAGE_FAMILIES,
    VISION_FAMILIES,
    CheckpointSource,
    load_calibration,
    load_codec,
    load_encoder,
    load_exits,
    load_network,
    load_tokenizer,
    stack_of,
)
from vlm_spec_decode.models.checkpoint.failures import named
from vlm_spec_decode.models.checkpoint.files import fingerprint, read_config, resolve, weight_files
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.device import check_device
from vlm_spec_decode.models.model import VlmModel
from vlm_spec_decode.models.prompt import prompt_digest
from vlm_spec_decode.models.quantization import quantize
from vlm_spec_decode.models.spec import LoadOptions, ModelSpec, parse_spec

_SHIPPED_MARK = "shipped:"


def shipped(name: str) -> Path:
    """Return the folder of a checkpoint that comes with the package, such as "target". Raises ModelError."""
    known = sorted(folder.name for folder in ASSETS.iterdir() if (folder / "config.json").is_file())
    if name not in known:
        raise ModelError(f"no checkpoint {name!r} comes with this package (known: {', '.join(known)})")
    return ASSETS / name


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

    A string may carry options (`models.spec`), which win over the arguments, and `shipped:NAME` names a
    checkpoint that comes with the package. `threads` sets torch's
    threads for the whole process. Raises ModelError in one line if the checkpoint is missing, truncated,
    incomplete, of an architecture that is not supported, or too large for the memory.
    """
    spec = parse_spec(path_or_id, LoadOptions(revision=revision, dtype=dtype, device=device))
    if spec.source.startswith(_SHIPPED_MARK):
        path_or_id = shipped(spec.source.removeprefix(_SHIPPED_MARK))
        spec = ModelSpec(str(path_or_id), spec.options)
    check_device(spec.options.device)
    torch.set_num_threads(threads)
    is_folder = Path(spec.source).is_dir()
    name = model_id or (Path(spec.source).resolve().name if is_folder else spec.source)
    place = Path(spec.source) if isinstance(path_or_id, Path) else spec.source
    with named(name), _no_progress_bars():
        return _load(name, place, spec.options)


def _load(name: str, place: str | Path, options: LoadOptions) -> VlmModel:
    folder = resolve(place, options.revision)
    raw = read_config(folder)
    if originals.is_original(raw) or not weight_files(folder):
        folder = resolve(place, options.revision, pickles=True)
    tokenizer = load_tokenizer(folder, raw, options) if originals.is_original(raw) else None
    source = _source(folder, raw, options, tokenizer)
    network = load_network(source)
    tokenizer = tokenizer or load_tokenizer(folder, raw, options)
    encoder = load_encoder(source, network, tokenizer)
    codec = load_codec(folder, tokenizer)
    if network.lm_head.weight.shape[0] < codec.vocab_size:
        raise ModelError(f"its tokenizer knows {codec.vocab_size} tokens, more than its head has rows")
    exits = load_exits(source, network)
    quantize(stack_of(network), options.quantize)
    calibration = load_calibration(folder)
    decoder = Decoder(stack_of(network), network.lm_head, exits, codec.vocab_size, calibration)
    card = ModelCard(
        model_id=name,
        revision=fingerprint(source.original.folders if source.original else [folder]),
        tokenizer_digest=codec.digest,
        prompt_digest=prompt_digest(encoder.style),
        vocab_size=codec.vocab_size,
        num_layers=decoder.depth,
        exit_layers=tuple(decoder.exits),
    )
    return VlmModel(card, codec, decoder, encoder)


def _source(folder: Path, raw: dict[str, Any], options: LoadOptions, tokenizer: Any) -> CheckpointSource:
    """Return what is to be loaded; of the original layout all tensors are mapped already."""
    if originals.is_original(raw):
        found = originals.read_original(folder, raw, options.base, options.tower)
        image_id = int(tokenizer.convert_tokens_to_ids(originals.IMAGE_TOKEN))
        config = originals.converted_config(found, raw, image_id)
    else:
        found, config = None, AutoConfig.from_pretrained(folder)
    _check_family(config)
    return CheckpointSource(folder, options, raw, config, found)


def _check_family(config: Any) -> None:
    """Raise ModelError for an architecture that the decoder loop does not cover."""
    if config.model_type not in VISION_FAMILIES + LANGUAGE_FAMILIES:
        known = ", ".join(VISION_FAMILIES + LANGUAGE_FAMILIES)
        raise ModelError(f"architecture {config.model_type!r} is not supported (known: {known})")
    text = config.get_text_config()
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ModelError("sliding-window attention is not supported: a tree needs all of its past")


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
