"""One tiny checkpoint per family, loaded once, beside Transformers' own model as the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaNextProcessor,
    LlavaProcessor,
)

from test.models import checkpoints, originals
from vlm_spec_decode.core.images import decode_jpeg
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.checkpoint import EXITS_FILE
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.loader import load_model

LANGUAGE = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gemma4_text", "qwen3_5_text"]
VISION = [
    *("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "gemma4"),
    *("qwen3_5", "qwen3_5_moe"),
]
ORIGINAL = ["original_llava", "original_llava_next"]


@dataclass(frozen=True)
class Pair:
    """Our model and the reference: Transformers' forward over everything, with nothing cached."""

    folder: Path
    model: VlmModel
    network: Any
    inputs: dict[str, torch.Tensor]
    observation: Observation

    @property
    def prompt_tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]

    def plain(self, path: tuple[int, ...]) -> np.ndarray:
        """Logits [vocab] after `path`, recomputed from the first prompt token on."""
        with torch.inference_mode():
            return self.network(**self.extended(path)).logits[0, -1, : self.model.card.vocab_size].numpy()

    def extended(self, path: tuple[int, ...]) -> dict[str, torch.Tensor]:
        inputs = dict(self.inputs)
        answer = torch.tensor([path], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
        for kinds in {"token_type_ids", "mm_token_type_ids"} & set(inputs):
            inputs[kinds] = (inputs["input_ids"] == checkpoints.IMAGE_ID).int()
        return inputs


def family_inputs(family: str, model: VlmModel, observation: Observation) -> dict[str, torch.Tensor]:
    """What the family's own processor makes of the observation."""
    text, tokenizer = model.encoder.render(observation), model.encoder.tokenizer
    if family in LANGUAGE:
        return {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}
    image = decode_jpeg(observation.image.jpeg)
    images = model.encoder.image_processor
    if family.startswith("gemma"):
        return gemma_inputs(family, text, tokenizer, dict(images(images=image, return_tensors="pt")))
    if family.startswith("qwen"):  # its processor class needs torchvision for videos
        inputs = dict(images(images=image, return_tensors="pt"))
        count = int(inputs["image_grid_thw"].prod()) // images.merge_size**2
        ids = tokenizer(text.replace("<image>", "<image>" * count), return_tensors="pt")["input_ids"]
        return {"input_ids": ids, "mm_token_type_ids": (ids == checkpoints.IMAGE_ID).int(), **inputs}
    processor = {"llava": LlavaProcessor, "llava_next": LlavaNextProcessor}[family](
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    inputs = dict(processor(images=image, text=text, return_tensors="pt"))
    wanted = ("input_ids", "pixel_values", "image_sizes")
    return {name: inputs[name] for name in wanted if name in inputs}


def gemma_inputs(
    family: str, text: str, tokenizer: Any, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A picture between its marks; Gemma 3's processor wants names for them, Gemma 4's needs torchvision."""
    begins, ends = (checkpoints.WORDS[i] for i in (checkpoints.IMAGE_BEGINS, checkpoints.IMAGE_ENDS))
    rows = int(tensors["num_soft_tokens_per_image"]) if family == "gemma4" else 16
    mark = "<image>" if family == "gemma4" else begins
    text = text.replace(mark, f" {begins} {'<image>' * rows} {ends} ")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    kinds = "mm_token_type_ids" if family == "gemma4" else "token_type_ids"
    known = {name: tensors[name] for name in ("pixel_values", "image_position_ids") if name in tensors}
    return {"input_ids": ids, kinds: (ids == checkpoints.IMAGE_ID).int(), **known}


def load_pair(family: str, folder: Path) -> Pair:
    auto = AutoModelForCausalLM if family in LANGUAGE else AutoModelForImageTextToText
    # Told of no action language, a prompt is short and recomputing all of it quick.
    model, observation = load_model(f"{folder},prompt=bare"), checkpoints.observation()
    inputs = family_inputs(family, model, observation)
    return Pair(folder, model, auto.from_pretrained(folder).eval(), inputs, observation)


def load_original(family: str, folder: Path) -> Pair:
    """The original repository's layout, beside the same weights in Transformers' own."""
    source = originals.converted(folder / "hf", tiled=family.endswith("next"))
    tiles = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
    }
    changes = tiles if family.endswith("next") else {}
    layout = {"tower_inside": False, "projector_file": True}
    own = originals.original(folder / "own", source, **layout, **changes)
    reference = load_pair(family.removeprefix("original_"), source)
    return replace(reference, folder=own, model=load_model(f"{own},prompt=bare"))


@pytest.fixture(scope="session", params=LANGUAGE + VISION + ORIGINAL)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family: str = request.param
    if family in ORIGINAL:
        return load_original(family, tmp_path_factory.mktemp(family))
    return load_pair(family, getattr(checkpoints, family)(tmp_path_factory.mktemp(family) / family))


@pytest.fixture(scope="session")
def llava_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair("llava", checkpoints.llava(tmp_path_factory.mktemp("llava") / "llava"))


@pytest.fixture(scope="session")
def exits_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A LLaVA that exits after 1, 2 and 3 of 4 layers, with an adapter at 2."""
    folder = tmp_path_factory.mktemp("exits") / "llava"
    checkpoints.llava(folder, exit_layers=[1, 3])
    weight, bias = torch.randn(32, 32) * 0.1, torch.randn(32) * 0.1
    save_file({"layers.2.weight": weight, "layers.2.bias": bias}, folder / EXITS_FILE)
    return load_pair("llava", folder)
