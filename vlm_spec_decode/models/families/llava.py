"""LLaVA 1.5 and 1.6: Transformers' layout, and the original repository's.

An original folder is a language model with LLaVA's settings in its config (`mm_projector_type`,
`mm_vision_tower`, …). The projector lies among the shards or in a projector file; the CLIP tower lies
among them too, or elsewhere, by the config's folder or Hub id; the language model may be elsewhere as
well (a folder with nothing but a projector). Tensors keep their values, only their names change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.checkpoint import (
    load_tokenizer,
    read_config,
    read_tensors,
    resolve,
    weight_files,
)
from vlm_spec_decode.models.families.base import Family

PROJECTOR_FILES = ("mm_projector.bin", "mm_projector.safetensors")
IMAGE_TOKEN = "<image>"

_OWN = "model.vision_tower."
_TOWER_PREFIXES = ("model.vision_tower.vision_tower.", "vision_tower.vision_tower.")
_PROJECTOR_LAYERS = {"0": "linear_1", "2": "linear_2"}


class Llava(Family):
    """A CLIP tower, a projector and a Llama. LLaVA 1.6 cuts a picture into tiles; the tower does both."""

    token_texts: ClassVar[Mapping[str, str]] = {"image_token_id": IMAGE_TOKEN}

    @classmethod
    def variant(cls, raw: Mapping[str, Any]) -> type[Family]:
        """Return the original layout's class if the config names a vision tower in that layout's way."""
        return OriginalLlava if "mm_vision_tower" in raw else cls


class OriginalLlava(Llava):
    """A checkpoint in the original repository's layout, read as Transformers' LLaVA."""

    reads_pickles = True

    @property
    def network_class(self) -> Any:
        """Return LLaVA-NeXT's class if pictures are tiled (anyres), else LLaVA-1.5's."""
        return (
            LlavaNextForConditionalGeneration if is_tiled(self.source.raw) else LlavaForConditionalGeneration
        )

    def load_tokenizer(self) -> Any:
        """Return the language model's tokenizer with the image's placeholder behind its last token."""
        source, folder = self.source, self.source.folder
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            folder = base_folder(folder, source.raw, source.options.base)
        # Transformers knows no `llava_llama`: the tokenizer is found by the language model's config instead.
        tokenizer = load_tokenizer(folder, config=LlamaConfig())
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
        return tokenizer

    def load_config(self) -> Any:
        """Read all parts and return Transformers' config of them."""
        source = self.source
        self.parts = read_original(source.folder, source.raw, source.options.base, source.options.tower)
        image_token_id = int(self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        return converted_config(self.parts, source.raw, image_token_id)

    def load_network(self, settings: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Build the network from the tensors under their new names."""
        tensors = dict(self.parts.tensors)
        # The network has its own from here on; a second copy must not live as long as the family.
        self.parts = replace(self.parts, tensors={})
        network, report = self.network_class.from_pretrained(
            None, config=self.config, state_dict=tensors, **settings
        )
        return network, report

    def image_processor(self) -> Any:
        """Return the tower's image processor, with the config's way to fit a picture in."""
        raw, tower = self.source.raw, self.parts.tower
        if is_tiled(raw):
            pinpoints = raw["image_grid_pinpoints"]
            return LlavaNextImageProcessorPil.from_pretrained(tower, image_grid_pinpoints=pinpoints)
        if raw.get("image_aspect_ratio") == "pad":
            return LlavaImageProcessorPil.from_pretrained(tower, do_pad=True)
        return CLIPImageProcessorPil.from_pretrained(tower)

    @property
    def folders(self) -> list[Path]:
        """The folders of all parts, once each."""
        return self.parts.folders


@dataclass(frozen=True, slots=True)
class LlavaOriginal:
    """Where the parts of such a checkpoint are, and the tensors under Transformers' names."""

    folder: Path
    base: Path
    tower: Path
    tensors: Mapping[str, Tensor]

    @property
    def folders(self) -> list[Path]:
        """Every folder that something was read from, once."""
        return list(dict.fromkeys((self.folder, self.base, self.tower)))


def read_original(folder: Path, config: Mapping[str, Any], base: str = "", tower: str = "") -> LlavaOriginal:
    """Read all parts. Raises ModelError naming the one that is missing or of a kind that is not supported."""
    _check(config)
    if (folder / "adapter_config.json").is_file():
        raise ModelError("it is a LoRA adapter: merge it into its base first")
    tower_folder = part_folder("vision tower", tower or str(config.get("mm_vision_tower") or ""), folder)
    tensors: dict[str, Tensor] = {}
    language = folder
    files = weight_files(folder)
    if not files:
        language = base_folder(folder, config, base)
        files = weight_files(language)
    # The folder's own tensors come last: a projector that was trained on wins over one in the shards.
    extra = [folder / name for name in PROJECTOR_FILES if (folder / name).is_file()]
    for path in [*files, *extra]:
        tensors |= {_renamed(name): tensor for name, tensor in read_tensors(path).items()}
    if not any(name.startswith(_OWN) for name in tensors):
        tensors |= _tower_tensors(tower_folder)
    _fill_linear_projector(tensors, config)
    if "model.multi_modal_projector.linear_1.weight" not in tensors:
        raise ModelError(f"no projector: neither its shards nor {PROJECTOR_FILES[0]} hold mm_projector")
    return LlavaOriginal(folder, language, tower_folder, tensors)


def base_folder(folder: Path, config: Mapping[str, Any], base: str) -> Path:
    """Return the folder of the language model that a projector was trained for: `base`, or the config's."""
    return part_folder("language model", base or str(config.get("_name_or_path") or ""), folder)


def converted_config(original: LlavaOriginal, config: Mapping[str, Any], image_token_id: int) -> Any:
    """Return Transformers' config: LLaVA-NeXT's if pictures are tiled (anyres), else LLaVA-1.5's."""
    text = {k: v for k, v in config.items() if not k.startswith(("mm_", "_name", "image_", "architectures"))}
    if original.base != original.folder:
        text = read_config(original.base) | {"use_cache": True}
    for key in ("model_type", "architectures", "exit_layers", "torch_dtype"):
        text.pop(key, None)
    vision = read_config(original.tower)
    shared = {
        "vision_config": CLIPVisionConfig(**vision.get("vision_config", vision)),
        "text_config": LlamaConfig(**text),
        "image_token_id": image_token_id,
        "projector_hidden_act": "linear" if _projector(config) == "linear" else "gelu",
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _strategy(config),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "exit_layers": config.get("exit_layers"),
    }
    if not is_tiled(config):
        return LlavaConfig(**shared)
    return LlavaNextConfig(**shared, image_grid_pinpoints=config["image_grid_pinpoints"])


def is_tiled(config: Mapping[str, Any]) -> bool:
    """Tell LLaVA 1.6, which cuts a picture into tiles, from LLaVA 1.5."""
    return config.get("image_aspect_ratio") == "anyres"


def _check(config: Mapping[str, Any]) -> None:
    """Raise ModelError for what the mapping does not cover."""
    if config.get("model_type") not in {"llava", "llava_llama"}:
        raise ModelError(
            f"the original LLaVA layout with {config.get('model_type')!r} is not supported: Llama only"
        )
    if _projector(config) not in {"linear", "mlp2x_gelu"}:
        raise ModelError(f"projector {_projector(config)!r} is not supported (known: linear, mlp2x_gelu)")
    if config.get("mm_use_im_start_end"):
        raise ModelError("image start and end tokens (mm_use_im_start_end) are not supported")
    if config.get("s2"):
        raise ModelError("the multi-scale vision tower (s2) is not supported")
    if is_tiled(config) and config.get("mm_patch_merge_type") != "spatial_unpad":
        raise ModelError(
            f"tiles merged by {config.get('mm_patch_merge_type')!r} are not supported: spatial_unpad"
        )


def _projector(config: Mapping[str, Any]) -> str:
    return str(config.get("mm_projector_type", "linear"))


def _strategy(config: Mapping[str, Any]) -> str:
    selected = config.get("mm_vision_select_feature", "patch")
    names = {"patch": "default", "cls_patch": "full"}
    if selected not in names:
        raise ModelError(f"vision feature {selected!r} is not supported (known: {', '.join(names)})")
    return names[selected]


def part_folder(what: str, name: str, folder: Path) -> Path:
    """Return the folder of a part by the name that the config gives it: relative, absolute or a Hub id."""
    if not name:
        raise ModelError(f"its config names no {what}")
    for place in (folder / name, folder.parent / name):
        if place.is_dir() and place.resolve() != folder.resolve():
            return place
    try:
        return resolve(name, None, pickles=True)
    except ModelError as error:
        raise ModelError(f"its {what}: {error}") from error


def _renamed(name: str) -> str:
    """Return Transformers' name of a tensor of the original layout."""
    for prefix in _TOWER_PREFIXES:
        if name.startswith(prefix):
            return _OWN + name.removeprefix(prefix).removeprefix("vision_model.")
    inner = name.removeprefix("base_model.").removeprefix("model.").removeprefix("model.")
    if inner.startswith("mm_projector."):
        layer, _, kind = inner.removeprefix("mm_projector.").rpartition(".")
        if (layer or "0") not in _PROJECTOR_LAYERS:
            raise ModelError(f"unknown projector tensor {name}")
        return f"model.multi_modal_projector.{_PROJECTOR_LAYERS[layer or '0']}.{kind}"
    if inner == "image_newline":
        return "model.image_newline"
    return f"model.language_model.{inner}" if name.startswith("model.") else name


def _tower_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a CLIP folder, whole CLIP or its vision half; its text half is left out."""
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_tensors(path).items():
            inner = name.removeprefix("vision_model.")
            if inner.startswith(("embeddings.", "pre_layrnorm.", "post_layernorm.", "encoder.")):
                found[_OWN + inner] = tensor
    if not found:
        raise ModelError(f"its vision tower {folder.name} holds no CLIP weights")
    return {name: tensor for name, tensor in found.items() if not name.endswith("position_ids")}


def _fill_linear_projector(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a linear projector as Transformers' two layers: the second one is the identity."""
    first = tensors.get("model.multi_modal_projector.linear_1.weight")
    if _projector(config) == "linear" and first is not None:
        tensors["model.multi_modal_projector.linear_2.weight"] = torch.eye(first.shape[0], dtype=first.dtype)
        tensors["model.multi_modal_projector.linear_2.bias"] = torch.zeros(first.shape[0], dtype=first.dtype)
