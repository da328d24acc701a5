"""A VLM family of your own: one file, one `register_family` line, nothing of the package edited.

    python examples/06_new_family.py

The family is Mistral Small 3 with Pixtral's tower, which the package does not have. A picture keeps its
shape: it becomes rows of image tokens, with a mark at the end of each row and another one at the end of the
picture. That is what the family says; the rest of its prompt, and its decoder, are as in most families. The
rest of the file makes a tiny checkpoint with random weights, lets a draft and a target of this family answer
about a picture, and compares the answer with that of Transformers' own `generate`.

For a cloud or a robot that others start, put such a file into a package and name it as an entry point of that
package:

    [project.entry-points."vlm_spec_decode.families"]
    mistral3 = "my_package.mistral3:FAMILY"
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vlm_spec_decode.models.families.base import Family
from vlm_spec_decode.models.registry import register_family

ROW_END, PICTURE_END = "[IMG_BREAK]", "[IMG_END]"


class Mistral3(Family):
    """A Pixtral tower whose patches are merged, and a Mistral."""

    network_class = AutoModelForImageTextToText

    @property
    def edge(self) -> int:
        """Pixels on each side of what one image token stands for."""
        return int(self.config.vision_config.patch_size * self.config.spatial_merge_size)

    def image_processor(self) -> Any:
        """Return the image processor, told to round a picture to whole tokens instead of patches."""
        images = super().image_processor()
        images.patch_size = {"height": self.edge, "width": self.edge}
        return images

    def image_text(self, image: Mapping[str, Tensor]) -> str:
        """Return the picture's rows of placeholders with the marks at their ends."""
        rows, columns = (image["image_sizes"][0] // self.edge).tolist()
        return ROW_END.join([self.image_mark * columns] * rows) + PICTURE_END


FAMILY = Mistral3

register_family("mistral3", FAMILY)

WORDS = ("user", "robot", "go", "to", "the", "red", "chair", *(f"w{i}" for i in range(40)))


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a tiny Mistral 3 with random weights, as a user would find a large one."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessorPil

    from vlm_spec_decode.models import tiny
    from vlm_spec_decode.models.prompt import CHAT_TEMPLATE

    tokenizer = tiny.build_tokenizer(WORDS)
    tokenizer.add_tokens([ROW_END, PICTURE_END], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "initializer_range": 0.3}
    text = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "sliding_window": None,
        "bos_token_id": tiny.BOS_ID,
        "eos_token_id": tiny.EOS_ID,
        "pad_token_id": tiny.PAD_ID,
    }
    vision = {"num_hidden_layers": 2, "patch_size": 4, "image_size": 64}
    torch.manual_seed(seed)
    network = Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config={"model_type": "mistral", **sizes, **text},
            vision_config={"model_type": "pixtral", **sizes, **vision},
            image_token_index=tiny.IMAGE_ID,
        )
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=4).save_pretrained(folder)
    return folder


def generated(folder: Path, picture: Any, text: str, count: int) -> tuple[int, ...]:
    """Return what Transformers alone says: its own model, its own loop, nothing of this package's."""
    from transformers import AutoImageProcessor, AutoTokenizer

    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tensors = images(images=picture, patch_size=8, return_tensors="pt")
    height, width = tensors["image_sizes"][0].tolist()
    grid = "[IMG_BREAK]".join(["<image>" * (width // 8)] * (height // 8)) + "[IMG_END]"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text.replace("<image>", grid), return_tensors="pt")["input_ids"]
    network = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.inference_mode():
        said = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            **tensors,
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
