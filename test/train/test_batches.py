"""Training on many dialogues at once computes what decoding one of them computes, on the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.tiny import EOS_ID, build_processor
from vlm_spec_decode.train.batches import (
    Batch,
    answer_loss,
    distil_loss,
    image_features,
    logits_of,
    moving,
    pack_ids,
    to_pixels,
)
from vlm_spec_decode.train.config import TrainConfig
from vlm_spec_decode.train.frames import squash
from vlm_spec_decode.train.loop import export, tokenizer
from vlm_spec_decode.train.training_state import new_training_state

INSTRUCTIONS = ("go to the red chair", "what do you see", "turn left 90 degrees")
ANSWER = "i see the red chair ahead at 2.2 m and nothing else . turn ( -10 ) forward ( 1.6 )"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("draft")
    tok = tokenizer()
    export(folder, new_training_state(TrainConfig("draft"), len(tok)).model.eval(), tok, {"steps": 0})
    return folder


def frame() -> np.ndarray:
    smooth = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return np.asarray(PilImage.fromarray(smooth).resize((640, 360), PilImage.Resampling.BICUBIC))


def packed(pixels: torch.Tensor) -> Batch:
    tok = tokenizer()
    answer = [*tok(ANSWER)["input_ids"], EOS_ID]
    prompts = [tok(f"user : {text} robot :")["input_ids"] for text in INSTRUCTIONS]
    rows = [(0, [*p, *answer], len(p)) for p in prompts]
    return pack_ids(pixels, rows, np.zeros(len(tok), dtype=bool))


def test_the_processor_makes_the_pixels_that_training_saw(checkpoint: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    buffer = io.BytesIO()
    PilImage.fromarray(frame()).save(buffer, format="JPEG", quality=85)
    seen = processor(images=PilImage.open(buffer), return_tensors="pt")["pixel_values"]
    trained = to_pixels(squash(frame())[None])
    assert seen.shape == trained.shape == (1, 3, 128, 128)
    assert (seen - trained).abs().mean() < 0.03, "a JPEG's loss is the only difference"


def test_dialogues_side_by_side_give_the_logits_of_decoding_each_alone(checkpoint: Path) -> None:
    jpeg = io.BytesIO()
    PilImage.fromarray(frame()).save(jpeg, format="JPEG", quality=85)
    image = Image(jpeg.getvalue(), 640, 360)
    model = load_model(checkpoint)
    network = LlavaForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager").eval()
    pixels = model.encoder.encode(Observation(image, "x")).image["pixel_values"]
    batch = packed(pixels)
    with torch.inference_mode():
        logits = logits_of(network, image_features(network, pixels), batch)
    dialogue = torch.cat([g.numbers[:, None].expand_as(g.labels)[g.labels >= 0] for g in batch.groups])
    assert len(batch.groups) > 1
    for number, instruction in enumerate(INSTRUCTIONS):
        rows = dialogue == number
        answer = tuple(batch.labels[rows].tolist())
        context = model.open(Observation(image, instruction))
        alone = context.score((), answer[:-1], tuple(range(len(answer) - 1)))
        context.close()
        np.testing.assert_allclose(logits[rows].numpy(), alone, atol=2e-4)


def test_losses_fall_on_answers_alone_and_distilling_from_oneself_is_at_its_least() -> None:
    batch = packed(torch.zeros(1, 3, 128, 128))
    torch.manual_seed(0)
    answer = [*tokenizer()(ANSWER)["input_ids"], EOS_ID]
    assert batch.labels.tolist() == len(INSTRUCTIONS) * answer, "one after the other, prompts left out"
    logits = torch.randn(len(batch.labels), len(tokenizer()), requires_grad=True)
    answer_loss(logits, batch).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).all()
    sharp = 20 * logits.detach()
    assert distil_loss(sharp, sharp, batch) < distil_loss(sharp.roll(1, -1), sharp, batch) / 5


def test_the_processor_loads_as_llavas_own() -> None:
    processor = build_processor(tokenizer())
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sit"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=PilImage.fromarray(frame()), text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 64


def test_a_moving_camera_blurs_sideways_and_keeps_things_where_they_are() -> None:
    """What a patch shows is still in it: things move by a few pixels of the patch's sixteen at most."""
    image = np.zeros((128, 128, 3), np.uint8)
    image[56:72, 56:72] = 240
    rng = np.random.default_rng(3)
    seen = [moving(rng, image) for _ in range(60)]
    for one in seen:
        rows, columns = np.nonzero(one[..., 0] > 60)
        assert abs(rows.mean() - 63.5) < 8
        assert abs(columns.mean() - 63.5) < 5
    assert len({one.tobytes() for one in seen}) == 60
    widths = [int((one[..., 0] > 20).any(0).sum()) for one in seen]
    heights = [int((one[..., 0] > 20).any(1).sum()) for one in seen]
    assert max(widths) > 18 >= max(heights), "blurred sideways only"
    again = np.random.default_rng(3)
    assert np.array_equal(seen[0], moving(again, image))
