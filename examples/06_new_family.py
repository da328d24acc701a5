"""A VLM family of your own: one file, one `register_family` line, nothing of the package edited.

    python examples/06_new_family.py

The family is Qwen3-VL, which the package does not have. Its vision tower returns, besides the rows that stand
for the picture, further features that are added behind the first text layers (DeepStack, 2406.04334). Its
positions are those of Qwen2-VL, so that two methods are all there is to write. The rest of the file makes a
tiny checkpoint with random weights, lets a draft and a target of this family answer about a picture, and
compares the answer with that of Transformers' own `generate`.

For a cloud or a robot that others start, put such a file into a package and name it as an entry point of that
package:

    [project.entry-points."vlm_spec_decode.families"]
    qwen3_vl = "my_package.qwen3_vl:FAMILY"
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_spec_decode.models.families.base import ImageFeatures, PlacedPrompt
from vlm_spec_decode.models.families.qwen_vl import QwenVL
from vlm_spec_decode.models.registry import register_family


class Qwen3VL(QwenVL):
    """Qwen2-VL's prompt and positions, and deep features of the vision tower."""

    def encode_image(self, body: Any, image: Mapping[str, Tensor]) -> ImageFeatures:
        """Return the rows of the picture and, for each of the first text layers, what is added behind it."""
        found = body.get_image_features(**image, return_dict=True)
        deep = tuple(torch.cat(list(features)) for features in found.deepstack_features)
        return ImageFeatures(torch.cat(list(found.pooler_output)), deep)

    def layer_hook(self, layer: int, hidden: Tensor, prompts: Seq[PlacedPrompt]) -> Tensor:
        """Add the deep features of this layer to the rows of the picture, in the pass that has the prompt."""
        for start, prompt in prompts:
            if prompt.image is not None and prompt.image_rows is not None and layer <= len(prompt.image.deep):
                rows = (start + prompt.image_rows).to(hidden.device)
                hidden = hidden.index_add(1, rows, prompt.image.deep[layer - 1].to(hidden)[None])
        return hidden


FAMILY = Qwen3VL

register_family("qwen3_vl", FAMILY)

WORDS = ("user", "robot", "go", "to", "the", "red", "chair", *(f"w{i}" for i in range(40)))


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a tiny Qwen3-VL with random weights, as a user would find a large one."""
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from vlm_spec_decode.models import tiny
    from vlm_spec_decode.models.prompt import CHAT_TEMPLATE

    tokenizer = tiny.build_tokenizer(WORDS)
    tokenizer.chat_template = CHAT_TEMPLATE
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "max_position_embeddings": 1024,
        "bos_token_id": tiny.BOS_ID,
        "eos_token_id": tiny.EOS_ID,
        "pad_token_id": tiny.PAD_ID,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.3,
    }
    specials = {"image_token_id": tiny.IMAGE_ID, "video_token_id": len(tokenizer) - 1}
    specials |= {"vision_start_token_id": len(tokenizer) - 2, "vision_end_token_id": len(tokenizer) - 3}
    torch.manual_seed(seed)
    network = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, **specials)
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=256, max_pixels=1024).save_pretrained(
        folder
    )
    return folder


def generated(folder: Path, picture: Any, text: str, count: int) -> tuple[int, ...]:
    """Return what Transformers alone says: its own model, its own loop, nothing of this package's."""
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tensors = images(images=picture, return_tensors="pt")
    rows = int(tensors["image_grid_thw"].prod()) // images.merge_size**2
    expanded = text.replace("<image>", "<image>" * rows)
    ids = AutoTokenizer.from_pretrained(folder)(expanded, return_tensors="pt")["input_ids"]
    network = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    kinds = ids.eq(network.config.image_token_id).int()
    with torch.inference_mode():
        said = network.generate(
            input_ids=ids, mm_token_type_ids=kinds, max_new_tokens=count, do_sample=False, **tensors
        )
    return tuple(said[0, ids.shape[1] :].tolist())


def main() -> None:
    """Ask a tiny pair of this family, and Transformers, the same question."""
    import numpy as np
    from PIL import Image

    from vlm_spec_decode.core.types import Observation
    from vlm_spec_decode.edge.ask import AskConfig, run
    from vlm_spec_decode.edge.factory import EdgeSettings

    question = "go to the red chair"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = make_checkpoint(folder / "target")
        noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "frame.jpg")
        settings = EdgeSettings(
            draft=str(target), target=str(target), grammar=False, max_tokens=16, strategy="speculative"
        )
        found = run(AskConfig(instruction=question, image=folder / "frame.jpg", settings=settings))
        text = f"<image> user : {Observation(None, question).instruction} robot :"
        with Image.open(folder / "frame.jpg") as picture:
            wanted = generated(target, picture.convert("RGB"), text, 16)
    print(f"answer: {len(found['token_ids'])} tokens in {found['target_passes']} passes of the target")
    print("same as generate:", tuple(found["token_ids"]) == wanted)


if __name__ == "__main__":
    main()
