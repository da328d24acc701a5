"""The pairs of models that strategies are compared on, by name, and the recorded questions put to them.

`shipped`, `early47` and `early69` (the shipped target with the draft from early in its training, when its
acceptance was about that many per cent), `oracle` (the target drafts for itself, at the draft's speed: the
limit), `text` (the shipped language-only pair, about rooms described in words), `synthetic:A` (a known
acceptance A; for simulations), or `DRAFT+TARGET` of any two checkpoints.

Questions are frames from held-out rooms, so that no renderer is needed. An observation's `frame_id` names
its question; models of a pair are opened by it.

`measure_pair` measures a pair without any strategy: acceptance, ranks and early exits. A rank is the position
of the target's choice in the draft's ranking; for each exit it is counted how often it is already right.
Measured on the target's own answers; tokens that the grammar forces are not counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.recorded import RecordedModel
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.bench.synthetic import PairSpec, SyntheticFamily
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Model, TextCodec
from vlm_spec_decode.core.types import Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.models.vocabulary import assert_same_vocabulary

FOLDER = ASSETS / "prompts"
FRAME_PROMPTS, DESCRIBED_PROMPTS = "prompts.json", "told.json"
"""Questions about a frame, and about a room described in words."""


def recorded_prompts(count: int, kind: str = FRAME_PROMPTS, folder: Path = FOLDER) -> tuple[Observation, ...]:
    """Return the first `count` questions of a kind. Raises ConfigError if there are fewer."""
    try:
        rows = json.loads((folder / kind).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no recorded questions in {folder}: {error.strerror}") from error
    if not 0 < count <= len(rows):
        raise ConfigError(f"{count} answers are wanted; there are {len(rows)} recorded questions")
    found = []
    for number, row in enumerate(rows[:count]):
        image = None
        if "file" in row:
            image = Image((folder / row["file"]).read_bytes(), row["width"], row["height"])
        history = tuple(row["history"])
        found.append(Observation(image, row["instruction"], history, frame_id=f"{kind} {number}"))
    return tuple(found)


MAX_ANSWER_TOKENS = 64
SYNTHETIC_TOKENS = 40
EARLY = "early"
ROLES = {
    "shipped": ("draft", "target"),
    "oracle": ("target", "target"),
    "text": ("text_draft", "text_target"),
}
"""Which shipped checkpoints draft and verify in a pair."""


def early_draft(name: str) -> Path:
    """Return the folder of a draft as it was early in its training. Raises ConfigError."""
    if not (ASSETS / f"draft_{name}").is_dir():
        known = sorted(path.name.removeprefix("draft_") for path in ASSETS.glob("draft_early*"))
        raise ConfigError(f"no early draft {name!r}; known: {', '.join(known)}")
    return ASSETS / f"draft_{name}"


def folders_of(name: str) -> tuple[str, str]:
    """Return the folders, or hub ids, of a pair's draft and target. Raises ConfigError for other pairs."""
    draft, plus, target = name.partition("+")
    if plus:
        return draft, target
    if name.startswith(EARLY):
        return str(early_draft(name)), str(shipped("target"))
    if name not in ROLES:
        raise ConfigError(f"unknown pair {name!r}: earlyNN, {', '.join(ROLES)}, synthetic:A or DRAFT+TARGET")
    return str(shipped(ROLES[name][0])), str(shipped(ROLES[name][1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPair:
    """Draft and target with the questions for them; `about` describes them."""

    name: str
    draft: Model
    target: Model
    codec: TextCodec
    params: SamplingParams
    questions: tuple[Observation, ...]
    about: str


@dataclass(slots=True)
class PairLibrary:
    """Loads each checkpoint once; a model's outputs are cached across pairs and cells.

    `with_grammar` masks answers by the action language, as edge and cloud do.
    """

    answers: int
    with_grammar: bool = True
    _models: dict[str, tuple[LoadedModel, RecordedModel]] = field(default_factory=dict)

    def pair(self, name: str) -> BenchPair:
        """Return a pair by name. Raises ConfigError or ModelError."""
        if name.startswith("synthetic:"):
            return self._synthetic(name)
        draft, target = folders_of(name)
        questions = recorded_prompts(self.answers, DESCRIBED_PROMPTS if name == "text" else FRAME_PROMPTS)
        loaded, drafting = self._recorded(draft, questions)
        model, verifying = self._recorded(target, questions)
        assert_same_vocabulary(loaded.card, model.card)
        about = f"draft {loaded.card.revision}, target {model.card.revision}"
        params = SamplingParams(max_tokens=MAX_ANSWER_TOKENS, stop_ids=model.codec.stop_ids)
        return BenchPair(
            name=name,
            draft=drafting,
            target=verifying,
            codec=model.codec,
            params=params,
            questions=questions,
            about=about,
        )

    def _recorded(self, source: str, questions: tuple[Observation, ...]) -> tuple[LoadedModel, RecordedModel]:
        key = str(Path(source).resolve()) if Path(source).is_dir() else source
        if key not in self._models:
            model = load_model(source)
            constrained_model = constrained(model, model.codec, language(self.with_grammar))
            self._models[key] = model, RecordedModel(constrained_model, {o.frame_id: o for o in questions})
        return self._models[key]

    def _synthetic(self, name: str) -> BenchPair:
        try:
            acceptance = float(name.partition(":")[2])
        except ValueError as error:
            raise ConfigError(f"{name!r}: synthetic:A wants a number between 0 and 1") from error
        if not 0 < acceptance < 1:
            raise ConfigError(f"{name!r}: an acceptance lies between 0 and 1")
        spec = PairSpec(acceptance=acceptance)
        params = SamplingParams(max_tokens=SYNTHETIC_TOKENS)
        questions = tuple(Observation(None, "go", frame_id=str(n)) for n in range(self.answers))
        draft, target = SyntheticFamily.pair(spec)
        about = f"simulated: first choice right with {acceptance}, the others by a geometric law"
        return BenchPair(
            name=name,
            draft=draft,
            target=target,
            codec=SilentCodec(),
            params=params,
            questions=questions,
            about=about,
        )


RANKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """`ranks[r]` counts the tokens at rank r of the draft, the last entry all further ranks."""

    acceptance: float
    ranks: tuple[int, ...]
    tokens: int
    forced: int
    mean_tokens: float
    exits: dict[int, float]


def measure_pair(pair: BenchPair) -> PairStatistics:
    """Measure a pair on its own questions, greedily."""
    ranks, forced, total = [0] * (RANKS + 1), 0, 0
    agreed: dict[int, list[bool]] = {}
    for question in pair.questions:
        tokens, free = _answer(pair.target, question, pair.params)
        total, forced = total + len(tokens), forced + len(tokens) - len(free)
        logits = _rows(pair.draft, question, tokens)
        for at in free:
            better = int(np.count_nonzero(logits[at] > logits[at][tokens[at]]))
            ranks[min(better, RANKS)] += 1
        for layer, rows in _exit_rows(pair.target, question, tokens).items():
            agreed.setdefault(layer, []).extend(int(rows[at].argmax()) == tokens[at] for at in free)
    counted = sum(ranks)
    return PairStatistics(
        acceptance=ranks[0] / max(1, counted),
        ranks=tuple(ranks),
        tokens=counted,
        forced=forced,
        mean_tokens=total / len(pair.questions),
        exits={layer: float(np.mean(same)) for layer, same in sorted(agreed.items())},
    )


def _answer(model: Model, question: Observation, params: SamplingParams) -> tuple[Tokens, tuple[int, ...]]:
    """Return the target's greedy answer and the positions whose tokens the grammar does not force."""
    context, tokens, free = model.open(question), Tokens(), list[int]()
    try:
        while not tokens or not params.ends(len(tokens), tokens[-1]):
            run = context.forced(tokens)
            if run:
                tokens += run[:1]
                continue
            free.append(len(tokens))
            tokens += (pick(context.score(tokens)[0], len(tokens), params),)
    finally:
        context.close()
    return tokens, tuple(free)


def _rows(model: Model, question: Observation, tokens: Tokens) -> Logits:
    """Return logits [n, vocab] of every position of `tokens`, each given the ones before it."""
    context = model.open(question)
    try:
        return context.score((), tokens[:-1], tuple(range(len(tokens) - 1)))
    finally:
        context.close()


def _exit_rows(model: Model, question: Observation, tokens: Tokens) -> dict[int, Logits]:
    """Return the exits' logits of every position."""
    found: dict[int, Logits] = {}

    def record_exit(exit_layer: int, logits: Logits) -> None:
        found[exit_layer] = logits

    context = model.open(question)
    try:
        context.score((), tokens[:-1], tuple(range(len(tokens) - 1)), on_exit=record_exit)
    finally:
        context.close()
    return found
