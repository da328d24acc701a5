"""Training data of the language-only pair: rooms in words, dialogues as token ids, the target's answers.

The camera's view becomes a sentence before the instruction. The teacher answers from the rounded numbers of
that sentence, so that the answer follows from the words alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vlm_spec_decode.models import tiny
from vlm_spec_decode.models.prompt import with_scene
from vlm_spec_decode.models.subword import is_subword
from vlm_spec_decode.sim.objects import footprint_radius_m
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import scene_description, teacher
from vlm_spec_decode.train.batches import Batch, dialogue_ids, informative_tokens, pack_ids, stop_token
from vlm_spec_decode.train.frames import sample_pose
from vlm_spec_decode.train.instructions import Goal, held_out
from vlm_spec_decode.train.scene_description import MAX_DESCRIBED, VisibleObject, project_objects
from vlm_spec_decode.train.spoken_dialogues import Draw, drawer
from vlm_spec_decode.train.teacher import FULL, AnswerStyle, Dialogue

STEP_DEG = 5
FARTHEST_M = 5.0
"""Largest distance in the vocabulary; farther objects get this distance."""

NEW_WORDING_SHARE = 0.3
"""Share of "go to" in evaluation with wordings that no training has used."""


def described(view: tuple[VisibleObject, ...]) -> tuple[VisibleObject, ...]:
    """Return the described objects of a view, left to right: the `MAX_DESCRIBED` largest, rounded."""
    seen = sorted((t for t in view if t.is_visible), key=lambda t: -t.pixels)[:MAX_DESCRIBED]
    return tuple(_rounded(t) for t in sorted(seen, key=lambda t: -t.bearing_deg))


def scene_text(things: tuple[VisibleObject, ...]) -> str:
    """Return a text such as "a red chair 25 degrees left at 2.0 m , a blue box ahead at 1.4 m"."""
    return " , ".join(f"a {t.name} {_direction(t)} at {t.distance_m:.1f} m" for t in things) or "nothing"


def draw(
    rng: np.random.Generator,
    view: tuple[VisibleObject, ...],
    draw_dialogue: Draw = teacher.draw_dialogue,
    style: AnswerStyle = FULL,
) -> Dialogue:
    """Draw one dialogue about a view; the scene's description is part of the user's text."""
    known = described(view)
    names = {t.name for t in known}
    hidden = tuple(replace(t, pixels=0) for t in view if t.name not in names)
    return _in_words(draw_dialogue(rng, known + hidden), known, style)


def views(seed: int, poses: int, forbid: frozenset[str] = frozenset()) -> Iterator[tuple[VisibleObject, ...]]:
    """Yield the objects of the room of `seed`, seen from `poses` places."""
    world = World(random_scene(seed, num_objects=(2, 6), forbid=forbid), seed=seed)
    rng = np.random.default_rng([seed, 0xF2])
    for _ in range(poses):
        world.teleport(sample_pose(world, rng))
        yield scene_description.read_objects(project_objects(world))


def training_dialogues(
    rng: np.random.Generator,
    rooms: int,
    poses: int,
    each: int,
    draw_dialogue: Draw = teacher.draw_dialogue,
    style: AnswerStyle = FULL,
) -> list[Dialogue]:
    """Draw `each` dialogues from each of `poses` places in `rooms` rooms that may be trained on."""
    seeds = rng.integers(0, held_out().first_scene_seed, rooms)
    seen = [view for seed in seeds.tolist() for view in views(seed, poses, held_out().pairs)]
    return [draw(rng, view, draw_dialogue, style) for view in seen for _ in range(each)]


def held_out_dialogue(seed: int) -> Dialogue:
    """Draw the dialogue of a held-out room, sometimes in a held-out wording."""
    rng = np.random.default_rng([seed, 0x7E57])
    view = next(views(seed, 1))
    dialogue = draw(rng, view)
    goal = dialogue.goal
    is_plain = goal.verb == "goto" and goal == Goal(goal.text, "goto", goal.thing)
    if not is_plain or rng.random() >= NEW_WORDING_SHARE:
        return dialogue
    forms = held_out().wordings
    text = forms[int(rng.integers(len(forms)))].format(x=goal.thing)
    return replace(dialogue, goal=replace(goal, text=with_scene(scene_text(described(view)), text)))


def _in_words(dialogue: Dialogue, known: tuple[VisibleObject, ...], style: AnswerStyle) -> Dialogue:
    """Put the scene's description before the instruction, and answer from the rounded numbers."""
    goal = dialogue.goal
    answer = teacher.answer(goal, known, dialogue.history, style)
    text = with_scene(scene_text(known), goal.text)
    return Dialogue(replace(goal, text=text), dialogue.history, answer)


def _rounded(thing: VisibleObject) -> VisibleObject:
    distance = round(min(FARTHEST_M, max(0.0, thing.distance_m)), 1)
    bearing = float(STEP_DEG * round(thing.bearing_deg / STEP_DEG))
    centre = distance + footprint_radius_m(thing.kind)
    return replace(thing, bearing_deg=bearing, distance_m=distance, centre_m=centre)


def _direction(thing: VisibleObject) -> str:
    angle = round(abs(thing.bearing_deg))
    if angle == 0:
        return "ahead"
    return f"{angle} degrees {'left' if thing.bearing_deg > 0 else 'right'}"


Row: TypeAlias = tuple[list[int], int]
"""Token ids of prompt and answer, and how many of them are the prompt's."""

DIALOGUES_PER_VIEW = 4
VIEWS_PER_ROOM = 2
POOL_STEPS = 4
"""Number of steps for which the target's own answers are made at once, which is cheaper per step."""

MAX_ANSWER = 56
LENGTH_GROUPS = 4
_NO_PIXELS = torch.empty(0)


class TextDataset:
    """Draws dialogues as token ids; what is drawn depends on (seed, step) alone."""

    def __init__(
        self, tok: PreTrainedTokenizerFast, batch: int, seed: int, style: AnswerStyle = FULL
    ) -> None:
        self._tok, self._batch, self._seed = tok, batch, seed
        self._style = style if is_subword(tok) else FULL
        self._draw = drawer(tok, style)
        self._informative, self._stop = informative_tokens(tok), stop_token(tok)

    @property
    def informative(self) -> torch.Tensor:
        """Which tokens carry information [vocab]."""
        return torch.from_numpy(self._informative)

    @property
    def seed(self) -> int:
        """The seed of every draw, besides the step."""
        return self._seed

    def batch(self, step: int) -> Batch:
        """Return the batch of one step."""
        return self.pack(self.rows(step))

    def rows(self, step: int) -> list[Row]:
        """Return the teacher's dialogues of one step."""
        rng = np.random.default_rng([self._seed, 0x7E, step])
        rooms = -(-self._batch // (VIEWS_PER_ROOM * DIALOGUES_PER_VIEW))
        drawn = training_dialogues(rng, rooms, VIEWS_PER_ROOM, DIALOGUES_PER_VIEW, self._draw, self._style)
        return [dialogue_ids(self._tok, dialogue) for dialogue in drawn[: self._batch]]

    def pack(self, rows: list[Row]) -> Batch:
        """Return rows as a batch without pixels."""
        numbered = [(0, *row) for row in rows]
        return pack_ids(_NO_PIXELS, numbered, self._informative, self._stop, LENGTH_GROUPS)

    @property
    def digest(self) -> str:
        """Hash of the first steps' dialogues: it changes with rooms, wordings, teacher and vocabulary."""
        content = repr([self.rows(step) for step in range(1, 5)]) + repr(
            sorted(self._tok.get_vocab().items())
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(slots=True)
class GuidedTextDataset:
    """Dialogues in which half of the answers are those of `guide`, in turn its first choice and a sample.

    Answers are made for `POOL_STEPS` steps at once; they depend on (seed, step) alone.
    """

    dataset: TextDataset
    guide: LlamaForCausalLM
    _number: int = -1
    _pool: list[list[Row]] = field(default_factory=list)

    @property
    def informative(self) -> torch.Tensor:
        """Which tokens carry information [vocab]."""
        return self.dataset.informative

    @property
    def digest(self) -> str:
        """Hash of the dialogues."""
        return self.dataset.digest

    def batch(self, step: int) -> Batch:
        """Return the batch of one step."""
        number = (step - 1) // POOL_STEPS
        if number != self._number:
            torch.manual_seed(1_000_003 * (self.dataset.seed + 1) + number)
            steps = [self.dataset.rows(number * POOL_STEPS + 1 + i) for i in range(POOL_STEPS)]
            self._pool, self._number = _answered(self.guide, steps), number
        return self.dataset.pack(self._pool[(step - 1) % POOL_STEPS])


def _answered(guide: LlamaForCausalLM, steps: list[list[Row]]) -> list[list[Row]]:
    """Replace the answers of every second row by the guide's: in turn its first choice and a sample."""
    answered = [list(rows) for rows in steps]
    for is_sample in (False, True):
        positions = [(i, j) for i, rows in enumerate(steps) for j in range(1 + 2 * is_sample, len(rows), 4)]
        prompts = [steps[i][j][0][: steps[i][j][1]] for i, j in positions]
        for (i, j), prompt, answer in zip(
            positions, prompts, own_answers(guide, prompts, is_sample), strict=True
        ):
            answered[i][j] = ([*prompt, *answer], len(prompt))
    return answered


@torch.no_grad()
def own_answers(guide: LlamaForCausalLM, prompts: list[list[int]], is_sample: bool) -> list[list[int]]:
    """Return the guide's answers, with their end tokens; samples are drawn from torch's global generator."""
    if not prompts:
        return []
    width = max(len(p) for p in prompts)
    device = guide.device
    ids = torch.tensor([[tiny.PAD_ID] * (width - len(p)) + p for p in prompts])
    chosen = {"do_sample": True, "temperature": 1.0, "top_k": 0} if is_sample else {"do_sample": False}
    mask = (torch.arange(width) >= torch.tensor([[width - len(p)] for p in prompts])).long()
    ids, mask = ids.to(device), mask.to(device)
    answers = guide.generate(ids, attention_mask=mask, max_new_tokens=MAX_ANSWER, **chosen)[
        :, width:
    ].tolist()
    return [row[: row.index(tiny.EOS_ID) + 1] if tiny.EOS_ID in row else row for row in answers]
