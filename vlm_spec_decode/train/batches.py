"""Batches: several dialogues about each image packed into one sequence, kept apart by a block mask.

Each dialogue sees the image and itself, and its positions start right after the image, so training on
packed sequences computes what decoding one dialogue computes, at a fraction of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerFast

from vlm_spec_decode.models.tiny import EOS_ID, NUM_IMAGE_TOKENS, PATCHES_ACROSS
from vlm_spec_decode.sim.scene import COLOURS, KINDS
from vlm_spec_decode.train import teacher
from vlm_spec_decode.train.dialogues import Dialogue, draw
from vlm_spec_decode.train.frames import Column, FrameSet

BEARING_BINS, BEARING_STEP_DEG = 30, 5.0
DISTANCE_BINS, DISTANCE_STEP_M = 24, 0.2
TELLING_WEIGHT = 6.0
"""Weight of tokens that carry information against 1 for the rest; a mean loss would hide them."""

DECIDING_WEIGHT = 12.0
"""Weight of the word after an answer's first full stop and of the third one after it: there "the red chair",
"i do not see", "i do not know", "i looked" and "ok" part."""

TELLING = (
    *COLOURS,
    *KINDS,
    *("left", "right", "ahead", "not", "nothing", "know", "looked", "will", "ok"),
    *("done", "turn", "forward", "stop", ",", "and"),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step; B images, S tokens each (the image's come first and are not in `tokens`).

    `tokens`, `labels` (-100: no loss), `weights`, `segments` and `positions` are [B, S]; `pixels`
    [B, 3, 128, 128]; `patch_labels` [B, 64, 4]: kind, colour, bearing bin, distance bin, -100 for none.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    patch_labels: torch.Tensor


class Batcher:
    """Draws batches from a frame set; `rng` decides everything, so a run can be repeated."""

    def __init__(self, frames: FrameSet, tokenizer: PreTrainedTokenizerFast, dialogues: int) -> None:
        self._frames = frames
        self._tokenizer = tokenizer
        self._dialogues = dialogues
        vocab = tokenizer.get_vocab()
        self.telling = np.zeros(len(tokenizer), dtype=bool)
        numbers = [i for token, i in vocab.items() if token.lstrip("-").replace(".", "").isdigit()]
        self._stop = vocab["."]
        self.telling[[*numbers, *(vocab[w] for w in TELLING)]] = True

    def draw(self, rng: np.random.Generator, batch: int, dialogues: int | None = None) -> Batch:
        """Draw a batch of images, half of them mirrored, each with fresh dialogues."""
        chosen = rng.integers(0, len(self._frames), batch)
        flips = rng.random(batch) < 0.5
        rows = [flipped(self._frames.objects[i], f) for i, f in zip(chosen, flips, strict=True)]
        talks = [[draw(rng, teacher.things(r)) for _ in range(dialogues or self._dialogues)] for r in rows]
        images = np.stack(
            [
                self._frames.frames[i][:, ::-1] if f else self._frames.frames[i]
                for i, f in zip(chosen, flips, strict=True)
            ]
        )
        patches = np.stack(
            [_flip_patches(self._frames.patches[i], f) for i, f in zip(chosen, flips, strict=True)]
        )
        return self.pack(augment(rng, images), talks, patch_labels(patches, np.stack(rows)))

    def pack(self, pixels: torch.Tensor, talks: list[list[Dialogue]], patch: torch.Tensor) -> Batch:
        """Lay the dialogues of each image one after the other."""
        sequences = [[self._ids(d) for d in talk] for talk in talks]
        return pack_ids(pixels, sequences, patch, self.telling, self._stop)

    def _ids(self, dialogue: Dialogue) -> tuple[list[int], int]:
        prompt = self._tokenizer(f"user : {dialogue.prompt} robot :")["input_ids"]
        return [*prompt, *self._tokenizer(dialogue.answer)["input_ids"], EOS_ID], len(prompt)


def pack_ids(
    pixels: torch.Tensor,
    sequences: list[list[tuple[list[int], int]]],
    patch: torch.Tensor,
    telling: npt.NDArray[np.bool_],
    stop: int = -1,
) -> Batch:
    """Pack (ids, prompt length) pairs per image. Loss falls on the answers alone.

    `stop` is the full stop after which an answer decides; -1 weighs no decision.
    """
    size = max(sum(len(ids) for ids, _ in talk) for talk in sequences)
    shape = (len(sequences), size)
    tokens, labels = np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    segments, positions = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    deciding = np.zeros(shape, dtype=bool)
    for row, talk in enumerate(sequences):
        at = 0
        for number, (ids, prompt) in enumerate(talk, start=1):
            end = at + len(ids)
            tokens[row, at:end] = ids
            labels[row, at + prompt - 1 : end - 1] = ids[prompt:]
            segments[row, at:end] = number
            positions[row, at:end] = NUM_IMAGE_TOKENS + np.arange(len(ids))
            if stop in ids[prompt:]:
                decides = at + prompt + ids[prompt:].index(stop)
                deciding[row, [decides, min(decides + 2, end - 1)]] = True
            at = end
    weights = np.where(labels >= 0, np.where(telling[np.maximum(labels, 0)], TELLING_WEIGHT, 1.0), 0.0)
    weights[deciding & (labels >= 0)] = DECIDING_WEIGHT
    return Batch(
        pixels=pixels,
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights.astype(np.float32)),
        segments=torch.from_numpy(segments),
        positions=torch.from_numpy(positions),
        patch_labels=patch,
    )


def flipped(objects: npt.NDArray[np.float32], flip: bool) -> npt.NDArray[np.float32]:
    """Return the objects' truth of a mirrored frame."""
    if not flip:
        return objects
    mirrored = np.array(objects)
    mirrored[:, Column.BEARING] *= -1
    return mirrored


def augment(rng: np.random.Generator, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Normalise [B, 128, 128, 3] uint8 to pixels as the processor does, with other light and some noise."""
    count = len(images)
    scaled = images.astype(np.float32)
    gain = rng.uniform(0.85, 1.15, (count, 1, 1, 3)) ** np.array([1, 0.3, 1])
    scaled = scaled * gain + rng.uniform(-8, 8, (count, 1, 1, 1))
    scaled += rng.normal(0, 3, scaled.shape[:3])[..., None]
    return to_pixels(np.clip(scaled, 0, 255))


def to_pixels(images: npt.NDArray[np.floating] | npt.NDArray[np.uint8]) -> torch.Tensor:
    """Normalise [B, 128, 128, 3] in 0 to 255 to [B, 3, 128, 128] with mean 0.5 and deviation 0.25."""
    scaled = (images.astype(np.float32) / 255.0 - 0.5) / 0.25
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def patch_labels(patches: npt.NDArray[np.int8], objects: npt.NDArray[np.float32]) -> torch.Tensor:
    """Return per patch [B, 64, 4]: kind (0 none), colour (0 none), bearing bin, distance bin."""
    index = np.maximum(patches, 0).astype(np.int64)[..., None]
    of_patch = np.take_along_axis(objects, index, axis=1)
    shows = patches >= 0
    kind = np.where(shows, of_patch[..., Column.KIND] + 1, 0)
    colour = np.where(shows, of_patch[..., Column.COLOUR] + 1, 0)
    bearing = np.clip(
        of_patch[..., Column.BEARING] / BEARING_STEP_DEG + BEARING_BINS / 2, 0, BEARING_BINS - 1
    )
    distance = np.clip(of_patch[..., Column.DISTANCE] / DISTANCE_STEP_M, 0, DISTANCE_BINS - 1)
    bins = [np.where(shows, value.astype(np.int64), -100) for value in (bearing, distance)]
    return torch.from_numpy(np.stack([kind.astype(np.int64), colour.astype(np.int64), *bins], axis=-1))


def _flip_patches(patches: npt.NDArray[np.int8], flip: bool) -> npt.NDArray[np.int8]:
    return patches.reshape(PATCHES_ACROSS, -1)[:, ::-1].reshape(-1) if flip else patches
