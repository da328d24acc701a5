"""Tiny checkpoints in the original LLaVA repository's layout, and the same weights in Transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from test.models import checkpoints

WORDS = [word for word in checkpoints.WORDS if word != "<image>"]
ROWS = len(WORDS)
IMAGE_ID = ROWS
"""The placeholder is no token of the original's tokenizer; it comes behind its last row."""

_TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT += ("num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def converted(folder: Path, tiled: bool = False, **changes: Any) -> Path:
    """Transformers' layout, as a converter leaves it: `<image>` added behind, rows padded to 64."""
    (checkpoints.llava_next if tiled else checkpoints.llava)(folder, **changes)
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"image_token_id": IMAGE_ID, "image_token_index": IMAGE_ID})
    )
    checkpoints.tokenizer(WORDS).save_pretrained(folder)
    return folder


def original(
    folder: Path,
    source: Path,
    *,
    tower_inside: bool,
    projector_file: bool,
    base: Path | None = None,
    pickled: bool = True,
    **changes: Any,
) -> Path:
    """Write `source`'s weights in the original layout; the tower goes to `folder`-tower in any case."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    parts = _split(load_file(source / "model.safetensors"))
    tower = folder.parent / f"{folder.name}-tower"
    _write_tower(tower, config["vision_config"], source, parts["tower"])
    shards = dict(parts["text"])
    if tower_inside:
        shards |= {f"model.vision_tower.vision_tower.vision_model.{k}": v for k, v in parts["tower"].items()}
    projector = {f"model.{name}": tensor for name, tensor in parts["projector"].items()}
    if projector_file:
        torch.save(projector, folder / "mm_projector.bin")
    else:
        shards |= projector
    text = config["text_config"] | {"vocab_size": ROWS}
    settings = {key: text[key] for key in _TEXT} | {"rms_norm_eps": text["rms_norm_eps"]}
    settings |= {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": tower.name,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.get("vision_feature_layer", -2),
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "mm_use_im_start_end": False,
        "use_mm_proj": True,
    }
    if base is not None:
        base.mkdir()
        _write_shards(base, shards, pickled)
        (base / "config.json").write_text(json.dumps(settings | {"model_type": "llama"}))
        checkpoints.tokenizer(WORDS, image=False).save_pretrained(base)
        settings["_name_or_path"] = base.name
    else:
        _write_shards(folder, shards, pickled)
        checkpoints.tokenizer(WORDS, image=False).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings | changes))
    return folder


def _split(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {"text": {}, "tower": {}, "projector": {}}
    for name, tensor in tensors.items():
        if name.startswith("vision_tower."):
            parts["tower"][name.removeprefix("vision_tower.").removeprefix("vision_model.")] = tensor
        elif name.startswith("multi_modal_projector."):
            number = {"linear_1": "0", "linear_2": "2"}[name.split(".")[1]]
            parts["projector"][f"mm_projector.{number}.{name.split('.')[2]}"] = tensor
        elif name == "image_newline":
            parts["projector"][name] = tensor
        else:
            short = name.removeprefix("language_model.")
            cut = "embed_tokens" in short or "lm_head" in short
            parts["text"][short] = tensor[:ROWS].clone() if cut else tensor
    return parts


def _write_tower(tower: Path, vision: dict[str, Any], source: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A CLIP folder as OpenAI's on the Hub: one pickle with both halves, positions included."""
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    processor = json.loads((source / "preprocessor_config.json").read_text())
    processor["image_processor_type"] = "CLIPImageProcessor"
    (tower / "preprocessor_config.json").write_text(json.dumps(processor))
    weights = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    weights["text_model.final_layer_norm.weight"] = torch.ones(4)
    torch.save(weights, tower / "pytorch_model.bin")


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor], pickled: bool) -> None:
    names = sorted(tensors)
    suffix, stem = (".bin", "pytorch_model") if pickled else (".safetensors", "model")
    where: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002{suffix}"
        held = {name: tensors[name].contiguous() for name in part}
        torch.save(held, folder / file) if pickled else save_file(held, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
