"""The parts of a checkpoint: tokenizer, network, exits, prompt encoder, codec, each from its files.

The loader puts them together; here is what each family's folders look like.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.decoding.early_exit import Bins, ExitCalibration
from vlm_spec_decode.models.checkpoint import llava_original as originals
from vlm_spec_decode.models.checkpoint.files import weight_files
from vlm_spec_decode.models.encoder import PromptEncoder
from vlm_spec_decode.models.prompt import CHAT_TEMPLATE, PromptStyle
from vlm_spec_decode.models.quantization import library_config, require
from vlm_spec_decode.models.spec import LoadOptions
from vlm_spec_decode.models.tokenizer import TokenizerCodec, spoken

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VISION_FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
LANGUAGE_FAMILIES = ("llama", "qwen2", "qwen3")
EXITS_FILE = "exits.safetensors"
"""Optional beside the weights: `layers.<n>.weight` [width, width] and `layers.<n>.bias` per exit layer."""

CALIBRATION_FILE = "exits.json"
"""Optional beside them: how often an exit that is so sure has been right, written by `vsd train exits`."""

TRAINING_RECORD = "training.json"
"""What `vsd train` leaves beside the weights: the mark of a model that knows the action language."""


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """What is loaded: folder, options, Transformers' config, and the original layout if it is in it."""

    folder: Path
    options: LoadOptions
    raw: dict[str, Any]
    config: Any
    original: originals.LlavaOriginal | None

    @property
    def sees(self) -> bool:
        """Whether it has eyes."""
        return self.config.model_type in VISION_FAMILIES


def load_tokenizer(folder: Path, raw: dict[str, Any], options: LoadOptions) -> Any:
    """Return the tokenizer with its chat template; an original LLaVA's gets the image's placeholder."""
    original = originals.is_original(raw)
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if original and not own:
        folder = originals.base_folder(folder, raw, options.base)
    # Transformers knows no `llava_llama`: the tokenizer is found by the language model's config instead.
    tokenizer = AutoTokenizer.from_pretrained(folder, **({"config": LlamaConfig()} if original else {}))
    template = folder / "chat_template.json"
    if not tokenizer.chat_template and template.is_file():  # where older processors keep it
        tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
    if original:
        tokenizer.add_tokens([originals.IMAGE_TOKEN], special_tokens=True)
    return tokenizer


def load_network(source: CheckpointSource) -> Any:
    """Return the network in evaluation mode. Raises ModelError if a tensor is missing or misshapen."""
    dtype = DTYPES[source.options.dtype]
    settings: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "sdpa",
        "use_safetensors": all(path.suffix == ".safetensors" for path in weight_files(source.folder)),
        "output_loading_info": True,
    }
    if bits := library_config(source.options.quantize, dtype):
        settings["quantization_config"] = bits
    if source.options.device == "auto":
        require("accelerate", "device=auto")
        settings["device_map"] = "auto"
    elif bits:
        settings["device_map"] = {"": source.options.device}
    network, report = _built(source, settings)
    # Transformers would fill the gaps with random numbers and only warn.
    gaps = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if gaps:
        raise ModelError(f"{len(gaps)} tensors are missing or misshapen, the first is {gaps[0]}")
    if "device_map" not in settings:
        network = network.to(source.options.device)
    return network.eval().requires_grad_(False)


def _built(source: CheckpointSource, settings: dict[str, Any]) -> Any:
    if source.original is None:
        auto = AutoModelForImageTextToText if source.sees else AutoModelForCausalLM
        return auto.from_pretrained(source.folder, **settings)
    tiled = originals.is_tiled(source.raw)
    family = LlavaNextForConditionalGeneration if tiled else LlavaForConditionalGeneration
    tensors = dict(source.original.tensors)
    return family.from_pretrained(None, config=source.config, state_dict=tensors, **settings)


def stack_of(network: Any) -> nn.Module:
    """Return the decoder stack of a network with a head."""
    stack: nn.Module = network.model.get_decoder()
    return stack


def load_exits(source: CheckpointSource, network: Any) -> dict[int, nn.Linear | None]:
    """Return exit layers, each with its adapter: trained ones, those of the config, those asked for."""
    depth = len(stack_of(network).layers)  # type: ignore[arg-type]
    layers = {int(layer) for layer in getattr(source.config, "exit_layers", None) or ()}
    path = source.folder / EXITS_FILE
    tensors = load_file(path) if path.is_file() else {}
    layers |= {int(key.split(".")[1]) for key in tensors}
    if not all(0 < layer < depth for layer in layers):
        raise ModelError(f"exit layers {sorted(layers)} do not lie within {depth} layers")
    asked = {round(depth * percent / 100) for percent in source.options.exits}
    layers |= {layer for layer in asked if 0 < layer < depth}
    return {layer: _adapter(tensors, layer, network.lm_head.weight) for layer in sorted(layers)}


def load_calibration(folder: Path) -> ExitCalibration:
    """Return how far the exits of a folder can be believed; without such a file nothing is known of it."""
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return ExitCalibration()
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        return ExitCalibration({int(layer): _bins(row["by_confidence"]) for layer, row in layers.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"its {CALIBRATION_FILE} is no calibration of exits: {error!r}") from error


def _bins(rows: list[dict[str, Any]]) -> Bins:
    """Return the bins that anything fell into."""
    return tuple((float(row["to"]), float(row["agrees"])) for row in rows if row["agrees"] is not None)


def _adapter(tensors: dict[str, torch.Tensor], layer: int, like: torch.Tensor) -> nn.Linear | None:
    weight, bias = tensors.get(f"layers.{layer}.weight"), tensors.get(f"layers.{layer}.bias")
    if weight is None:
        return None
    adapter = nn.Linear(like.shape[1], like.shape[1], bias=bias is not None)
    adapter.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return adapter.to(like.device, like.dtype).requires_grad_(False)


def load_encoder(source: CheckpointSource, network: Any, tokenizer: Any) -> PromptEncoder:
    """Return the prompt's encoder; a language-only checkpoint gets one without an image processor."""
    return PromptEncoder(
        body=network.model,
        tokenizer=tokenizer,
        image_processor=_image_processor(source) if source.sees else None,
        image_token_id=source.config.image_token_id if source.sees else None,
        max_tokens=source.config.get_text_config().max_position_embeddings,
        style=_style(source, tokenizer),
    )


def _image_processor(source: CheckpointSource) -> Any:
    """Return the image processor. Always the PIL back end: robot and cloud must see the same pixels."""
    if source.original is None:
        return AutoImageProcessor.from_pretrained(source.folder, backend="pil")
    tower = source.original.tower
    if originals.is_tiled(source.raw):
        pinpoints = source.raw["image_grid_pinpoints"]
        return LlavaNextImageProcessorPil.from_pretrained(tower, image_grid_pinpoints=pinpoints)
    if source.raw.get("image_aspect_ratio") == "pad":
        return LlavaImageProcessorPil.from_pretrained(tower, do_pad=True)
    return CLIPImageProcessorPil.from_pretrained(tower)


def _style(source: CheckpointSource, tokenizer: Any) -> PromptStyle:
    if source.options.prompt != "auto":
        return PromptStyle(source.options.prompt)
    ours = (source.folder / TRAINING_RECORD).is_file() or tokenizer.chat_template == CHAT_TEMPLATE
    return PromptStyle.BARE if ours else PromptStyle.ACTIONS


def load_codec(folder: Path, tokenizer: Any) -> TokenizerCodec:
    """Return the codec of what is spoken; generation config and tokenizer name the ids that end it."""
    ids: set[int] = set()
    if (folder / "generation_config.json").is_file():
        stop = GenerationConfig.from_pretrained(folder).eos_token_id
        ids.update(stop if isinstance(stop, list) else [stop] if stop is not None else [])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    stop_ids = tuple(sorted(ids))
    return TokenizerCodec(spoken(tokenizer, stop_ids), stop_ids)
