"""Batches of dialogues, and the forward pass over them.

Each dialogue sees the image and itself, and its positions start right after the image, so training computes
what decoding one dialogue computes, at a fraction of the cost. The forward pass goes through LLaVA's modules
and the vision tower's auxiliary heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PilImage
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_spec_decode.models.prompt import MAX_HISTORY
from vlm_spec_decode.models.subword import PHRASES, encode_answer, encode_prompt, is_subword
from vlm_spec_decode.models.tiny import EOS_ID, NUM_IMAGE_TOKENS, PATCHES_ACROSS
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train import scene_description
from vlm_spec_decode.train.frames import Column, FrameSet
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.spoken_dialogues import Draw
from vlm_spec_decode.train.teacher import Dialogue, draw_dialogue

Indices: TypeAlias = npt.NDArray[np.integer]
Flags: TypeAlias = npt.NDArray[np.bool_]

BEARING_BINS, BEARING_STEP_DEG = 30, 5.0
DISTANCE_BINS, DISTANCE_STEP_M = 24, 0.2
INFORMATIVE_WEIGHT = 6.0
"""Weight of tokens that carry information against 1 for the rest; a mean loss would hide them."""

GROUPS = 3
"""Number of groups into which dialogues are sorted by length, so that little is padded."""

DECIDING_WEIGHT = 12.0
"""Weight of an answer's first word, and of the first and the third word after its first full stop, which tell
"the red chair", "i do not see", "i do not know", "i looked" and "ok" apart."""

INFORMATIVE_WORDS = (
    *COLOURS,
    *KINDS,
    *("left", "right", "ahead", "not", "nothing", "know", "looked", "will", "can", "ok", "yes", "no"),
    *("done", "turn", "forward", "wait", "strafe", "stop", ",", "and"),
    *("sit", "stand_down", "stand_up", "rise", "hello", "stretch"),
)


@dataclass(frozen=True, slots=True)
class Group:
    """Dialogues of like length, a row each [N, L], padded at the end.

    `images` [N] is the image that a row is about, `numbers` [N] the dialogue's number in the batch; `labels`
    [N, L] are the next tokens of answers (-100: no loss), `weights` [N, L] theirs.
    """

    images: torch.Tensor
    numbers: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Group:
        """Return the same on `device`."""
        return Group(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Views:
    """Training data of the vision tower.

    `pixels` [B, 3, 128, 128]; `patch_labels` [B, 64, 4]: kind, colour, bearing bin, distance bin, -100 for
    none.
    """

    pixels: torch.Tensor
    patch_labels: torch.Tensor

    def to(self, device: torch.device) -> Views:
        """Return the same on `device`."""
        return Views(self.pixels.to(device), self.patch_labels.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step. `pixels` [B, 3, 128, 128]; `labels` and `weights` [M] are those of all groups'
    answers, in their order.
    """

    pixels: torch.Tensor
    groups: tuple[Group, ...]
    labels: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the same on `device`."""
        groups = tuple(group.to(device) for group in self.groups)
        return Batch(self.pixels.to(device), groups, self.labels.to(device), self.weights.to(device))


class Batcher:
    """Draws batches from a frame set; `rng` decides everything, so a run can be repeated."""

    def __init__(
        self,
        frames: FrameSet,
        tokenizer: PreTrainedTokenizerFast,
        dialogues: int,
        draw: Draw = draw_dialogue,
    ) -> None:
        self._frames = frames
        self._tokenizer = tokenizer
        self._dialogues = dialogues
        self.informative = informative_tokens(tokenizer)
        self._draw = draw
        self._stop = stop_token(tokenizer)

    def draw(self, rng: np.random.Generator, batch: int) -> Batch:
        """Draw a batch of images, half of them mirrored, with new dialogues; or of recorded frames."""
        chosen = rng.integers(0, len(self._frames), batch)
        if self._frames.dialogues:
            return self._recorded_batch(rng, chosen)
        # A mirrored frame is a new frame: left and right are swapped in image, ground truth and dialogue.
        flips = rng.random(batch) < 0.5
        views = [scene_description.read_objects(row) for row in self._objects(chosen, flips)]
        dialogues = [[self._draw(rng, view) for _ in range(self._dialogues)] for view in views]
        return self.pack(augment(rng, self._images(chosen, flips)), dialogues)

    def views(self, rng: np.random.Generator, batch: int) -> Views:
        """Draw a batch of images, half of them mirrored, with what each patch shows."""
        chosen, flips = rng.integers(0, len(self._frames), batch), rng.random(batch) < 0.5
        patches = [_flip_patches(self._frames.patches[i], f) for i, f in zip(chosen, flips, strict=True)]
        labels = patch_labels(np.stack(patches), np.stack(self._objects(chosen, flips)))
        return Views(augment(rng, self._images(chosen, flips)), labels)

    def _objects(self, chosen: Indices, flips: Flags) -> list[npt.NDArray[np.float32]]:
        return [flipped(self._frames.objects[i], f) for i, f in zip(chosen, flips, strict=True)]

    def _images(self, chosen: Indices, flips: Flags) -> npt.NDArray[np.uint8]:
        frames = self._frames.frames
        return np.stack([frames[i][:, ::-1] if f else frames[i] for i, f in zip(chosen, flips, strict=True)])

    def _recorded_batch(self, rng: np.random.Generator, chosen: Indices) -> Batch:
        """Return a batch of recorded frames, each with one of its dialogues."""
        dialogue = [self._frames.dialogues[i] for i in chosen]
        goals = [Goal(t["instruction"], "see") for t in dialogue]
        pasts = [tuple(t["history"][-MAX_HISTORY:]) for t in dialogue]
        dialogues = [[Dialogue(g, p, t["answer"])] for g, p, t in zip(goals, pasts, dialogue, strict=True)]
        return self.pack(augment(rng, self._frames.frames[chosen]), dialogues)

    def pack(self, pixels: torch.Tensor, dialogues: list[list[Dialogue]]) -> Batch:
        """Return the batch of the images' dialogues."""
        rows = [(number, *self._ids(d)) for number, dialogue in enumerate(dialogues) for d in dialogue]
        return pack_ids(pixels, rows, self.informative, self._stop)

    def _ids(self, dialogue: Dialogue) -> tuple[list[int], int]:
        return dialogue_ids(self._tokenizer, dialogue)


def dialogue_ids(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue) -> tuple[list[int], int]:
    """Return the ids of a dialogue with its end, and how many of them are the prompt's."""
    prompt = encode_prompt(tokenizer, dialogue.prompt)
    return [*prompt, *encode_answer(tokenizer, dialogue.answer), EOS_ID], len(prompt)


def stop_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of an answer's full stop; a decimal point is another one, if numbers have points."""
    return int(tokenizer(" ." if is_subword(tokenizer) else ".")["input_ids"][0])


def informative_tokens(tokenizer: PreTrainedTokenizerFast) -> npt.NDArray[np.bool_]:
    """Return for each token [vocab] whether it carries information: numbers and `INFORMATIVE_WORDS`.

    Of a subword tokenizer also calls, and the phrases that begin a refusal.
    """
    vocab = tokenizer.get_vocab()
    if is_subword(tokenizer):
        told = {phrase.strip() for phrase in PHRASES} | set(INFORMATIVE_WORDS)
        texts = (tokenizer.decode([i]).strip() for i in range(len(tokenizer)))
        return np.array([t.isdigit() or t in told or t.rstrip("()-") in told for t in texts])
    informative = np.zeros(len(tokenizer), dtype=np.bool_)
    numbers = [i for token, i in vocab.items() if token.lstrip("-").replace(".", "").isdigit()]
    informative[[*numbers, *(vocab[w] for w in INFORMATIVE_WORDS)]] = True
    return informative


def pack_ids(
    pixels: torch.Tensor,
    rows: list[tuple[int, list[int], int]],
    informative: npt.NDArray[np.bool_],
    stop: int = -1,
    groups: int = GROUPS,
) -> Batch:
    """Return (image, ids, prompt length) rows as groups of similar length. Only answers have a loss.

    `stop` is the full stop after which an answer's decision begins; -1: no decision has extra weight.
    """
    # Rows of like length share a group, so that little of it is padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][1]))
    size = -(-len(rows) // groups)
    packed = tuple(
        _group([(i, *rows[i]) for i in order[at : at + size]], informative, stop)
        for at in range(0, len(rows), size)
    )
    answers = [g.labels >= 0 for g in packed]
    labels = torch.cat([g.labels[a] for g, a in zip(packed, answers, strict=True)])
    weights = torch.cat([g.weights[a] for g, a in zip(packed, answers, strict=True)])
    return Batch(pixels, packed, labels, weights)


def _group(
    rows: list[tuple[int, int, list[int], int]], informative: npt.NDArray[np.bool_], stop: int
) -> Group:
    shape = (len(rows), max(len(ids) for _, _, ids, _ in rows) - 1)
    tokens, labels = np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    deciding = np.zeros(shape, dtype=bool)
    for row, (_, _, ids, prompt) in enumerate(rows):
        last = len(ids) - 1
        tokens[row, :last] = ids[:-1]
        # Position i predicts token i + 1; only tokens of the answer have a label.
        labels[row, prompt - 1 : last] = ids[prompt:]
        if stop in ids[prompt:]:
            decides = prompt + ids[prompt:].index(stop)
            deciding[row, [prompt - 1, decides, min(decides + 2, last - 1)]] = True
    weights = np.where(
        labels >= 0, np.where(informative[np.maximum(labels, 0)], INFORMATIVE_WEIGHT, 1.0), 0.0
    )
    weights[deciding & (labels >= 0)] = DECIDING_WEIGHT
    return Group(
        torch.tensor([image for _, image, _, _ in rows]),
        torch.tensor([number for number, _, _, _ in rows]),
        torch.from_numpy(tokens),
        torch.from_numpy(labels),
        torch.from_numpy(weights.astype(np.float32)),
    )


def flipped(objects: npt.NDArray[np.float32], flip: bool) -> npt.NDArray[np.float32]:
    """Return the objects' rows for the mirrored frame if `flip`, else unchanged."""
    if not flip:
        return objects
    mirrored = np.array(objects)
    mirrored[:, Column.BEARING] *= -1
    return mirrored


MOVING_SHARE = 0.3
"""Share of the images that are drawn as if the body had moved while the shutter was open."""

ROLL_DEG, SHIFT_PX, BLUR_PX = 2.0, 2.5, 5
"""Deviation of the roll of a walking trunk; of the rows by which its pitch (1.3 degrees) shifts the image,
68 degrees in 128 rows; and the longest blur, of 1 rad/s while a shutter is open for 70 ms."""


def moving(rng: np.random.Generator, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return [128, 128, 3] as a walking and turning robot sees it: rolled, shifted and blurred sideways."""
    side, margin = len(image), 12
    wide = PilImage.fromarray(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    shift = float(np.clip(rng.normal(0.0, SHIFT_PX), -margin / 2, margin / 2))
    rolled = wide.rotate(
        float(rng.normal(0.0, ROLL_DEG)), PilImage.Resampling.BILINEAR, translate=(0.0, shift)
    )
    seen = np.asarray(rolled)[margin : margin + side, margin : margin + side]
    length = int(rng.integers(1, BLUR_PX + 1))
    # The mean of `length` neighbours in a row: what passed over a pixel while the shutter was open.
    ends = np.pad(seen, ((0, 0), (length // 2, (length - 1) // 2), (0, 0)), mode="edge").astype(np.float32)
    blurred: npt.NDArray[np.floating] = np.mean([ends[:, at : at + side] for at in range(length)], axis=0)
    return blurred.astype(np.uint8)


def augment(rng: np.random.Generator, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Normalise [B, 128, 128, 3] uint8 to pixels as the processor does, with random light, noise, motion."""
    count = len(images)
    images = np.stack([moving(rng, i) if rng.random() < MOVING_SHARE else i for i in images])
    gain = rng.uniform(0.85, 1.15, (count, 1, 1, 3)) ** np.array([1, 0.3, 1])
    scaled = images * gain.astype(np.float32)
    scaled += rng.uniform(-8, 8, (count, 1, 1, 1)).astype(np.float32)
    # Noise of the sensor: per pixel, the same in all three channels.
    scaled += 3 * rng.standard_normal((*scaled.shape[:3], 1), dtype=np.float32)
    return to_pixels(np.clip(scaled, 0, 255, out=scaled))


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


HEADS = (len(KINDS) + 1, len(COLOURS) + 1, BEARING_BINS, DISTANCE_BINS)


class VisionHeads(nn.Module):
    """Predicts what each patch shows, by one linear layer on the vision tower; not in the final model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(HEADS))

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over kind, colour, bearing and distance; `labels` [B, 64, 4]."""
        parts = self.linear(features).split(HEADS, dim=-1)
        losses = [
            functional.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=-100)
            for i, part in enumerate(parts)
        ]
        return torch.stack(losses).mean()


def image_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return the tower's patch features [B, 64, width], as LLaVA selects them (no class token)."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    features: torch.Tensor = states[:, 1:]
    return features


def logits_of(model: LlavaForConditionalGeneration, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return logits [M, vocab] of the answers' tokens, in the order of `batch.labels`.

    The images' keys and values are computed once [B, 64] and read by every dialogue about them.
    """
    parts = []
    for group, output in group_outputs(model, features, batch):
        parts.append(model.lm_head(output.last_hidden_state[group.labels >= 0]))
    return torch.cat(parts)


def group_outputs(
    model: LlavaForConditionalGeneration, features: torch.Tensor, batch: Batch, **options: Any
) -> Iterator[tuple[Group, Any]]:
    """Yield each group with what the language model returns for it; `options` are that model's own."""
    language = model.model.language_model
    # Each image's keys and values are computed once ...
    cache = DynamicCache()
    language(
        inputs_embeds=model.model.multi_modal_projector(features),
        position_ids=torch.arange(NUM_IMAGE_TOKENS, device=features.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    for group in batch.groups:
        # ... and copied to the rows of its dialogues, which attend to them as if they had computed them.
        past = DynamicCache()
        for number, layer in enumerate(cache.layers):
            past.update(layer.keys[group.images], layer.values[group.images], number)
        behind = torch.arange(group.tokens.shape[1], device=features.device)
        yield (
            group,
            language(
                inputs_embeds=language.embed_tokens(group.tokens),
                position_ids=NUM_IMAGE_TOKENS + behind[None],
                past_key_values=past,
                use_cache=True,
                **options,
            ),
        )


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy of the answers' tokens."""
    # sum(w ce) / sum(w): the length of an answer does not change its weight per token.
    each = functional.cross_entropy(logits, batch.labels, reduction="none")
    return (each * batch.weights).sum() / batch.weights.sum()


def distil_loss(logits: torch.Tensor, wanted: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted cross-entropy against another model's distribution, half of it against its first choice.

    The first choice alone decides acceptance under greedy decoding; the rest of the distribution says how
    near the others were.
    """
    soft = functional.cross_entropy(logits, wanted.softmax(-1), reduction="none")
    hard = functional.cross_entropy(logits, wanted.argmax(-1), reduction="none")
    return ((soft + hard) / 2 * batch.weights).sum() / batch.weights.sum()
