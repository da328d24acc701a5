"""What the language-only pair is trained on: dialogues as token ids, and the target's own answers to them.

Knows rooms told in words and a tokenizer; of a model only how to let it answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vlm_spec_decode.models import tiny
from vlm_spec_decode.train.batches import Batch, pack_ids, telling_tokens
from vlm_spec_decode.train.spoken import training_dialogues

Row: TypeAlias = tuple[list[int], int]
"""Token ids of prompt and answer, and how many of them are the prompt's."""

DIALOGUES_PER_VIEW = 4
VIEWS_PER_ROOM = 2
POOL_STEPS = 4
"""So many steps' worth of the target's own answers are made at once, which costs less for each."""

MAX_ANSWER = 56
LENGTH_GROUPS = 4
_NO_PIXELS = torch.empty(0)


class Talks:
    """Draws dialogues as token ids; what is drawn depends on (seed, step) alone."""

    def __init__(self, tok: PreTrainedTokenizerFast, batch: int, seed: int) -> None:
        self._tok, self._batch, self._seed = tok, batch, seed
        self._telling, self._stop = telling_tokens(tok), tok.get_vocab()["."]

    @property
    def telling(self) -> torch.Tensor:
        """Which tokens carry information [vocab]."""
        return torch.from_numpy(self._telling)

    @property
    def seed(self) -> int:
        """What every draw depends on, besides the step."""
        return self._seed

    def batch(self, step: int) -> Batch:
        """Return the batch of one step."""
        return self.pack(self.rows(step))

    def rows(self, step: int) -> list[Row]:
        """Return the teacher's dialogues of one step."""
        rng = np.random.default_rng([self._seed, 0x7E, step])
        rooms = -(-self._batch // (VIEWS_PER_ROOM * DIALOGUES_PER_VIEW))
        drawn = training_dialogues(rng, rooms, VIEWS_PER_ROOM, DIALOGUES_PER_VIEW)[: self._batch]
        rows = []
        for dialogue in drawn:
            prompt = self._tok(f"user : {dialogue.prompt} robot :")["input_ids"]
            rows.append(([*prompt, *self._tok(dialogue.answer)["input_ids"], tiny.EOS_ID], len(prompt)))
        return rows

    def pack(self, rows: list[Row]) -> Batch:
        """Lay rows out; there is no picture in the batch."""
        numbered = [(0, *row) for row in rows]
        return pack_ids(_NO_PIXELS, numbered, self._telling, self._stop, LENGTH_GROUPS)

    @property
    def digest(self) -> str:
        """Hash of the first steps' dialogues: it changes with rooms, wordings, teacher and vocabulary."""
        said = repr([self.rows(step) for step in range(1, 5)]) + repr(sorted(self._tok.get_vocab().items()))
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(slots=True)
class GuidedTalks:
    """Talks in which half of the answers are what `guide` says itself, in turn its first choice and a sample.

    Answers are made for `POOL_STEPS` steps at once; what they are depends on (seed, step) alone.
    """

    talks: Talks
    guide: LlamaForCausalLM
    _number: int = -1
    _pool: list[list[Row]] = field(default_factory=list)

    @property
    def telling(self) -> torch.Tensor:
        """Which tokens carry information [vocab]."""
        return self.talks.telling

    @property
    def digest(self) -> str:
        """That of the dialogues."""
        return self.talks.digest

    def batch(self, step: int) -> Batch:
        """Return the batch of one step."""
        number = (step - 1) // POOL_STEPS
        if number != self._number:
            torch.manual_seed(1_000_003 * (self.talks.seed + 1) + number)
            steps = [self.talks.rows(number * POOL_STEPS + 1 + i) for i in range(POOL_STEPS)]
            self._pool, self._number = _answered(self.guide, steps), number
        return self.talks.pack(self._pool[(step - 1) % POOL_STEPS])


def _answered(guide: LlamaForCausalLM, steps: list[list[Row]]) -> list[list[Row]]:
    """Replace the answers of every second row by the guide's: in turn its first choice and a sample."""
    answered = [list(rows) for rows in steps]
    for is_sample in (False, True):
        places = [(i, j) for i, rows in enumerate(steps) for j in range(1 + 2 * is_sample, len(rows), 4)]
        prompts = [steps[i][j][0][: steps[i][j][1]] for i, j in places]
        for (i, j), prompt, said in zip(places, prompts, own_answers(guide, prompts, is_sample), strict=True):
            answered[i][j] = ([*prompt, *said], len(prompt))
    return answered


@torch.no_grad()
def own_answers(guide: LlamaForCausalLM, prompts: list[list[int]], is_sample: bool) -> list[list[int]]:
    """Return what the guide answers, its end included; samples are drawn from torch's own generator."""
    if not prompts:
        return []
    width = max(len(p) for p in prompts)
    device = guide.device
    ids = torch.tensor([[tiny.PAD_ID] * (width - len(p)) + p for p in prompts])
    chosen = {"do_sample": True, "temperature": 1.0, "top_k": 0} if is_sample else {"do_sample": False}
    mask = (torch.arange(width) >= torch.tensor([[width - len(p)] for p in prompts])).long()
    ids, mask = ids.to(device), mask.to(device)
    said = guide.generate(ids, attention_mask=mask, max_new_tokens=MAX_ANSWER, **chosen)[:, width:].tolist()
    return [row[: row.index(tiny.EOS_ID) + 1] if tiny.EOS_ID in row else row for row in said]
