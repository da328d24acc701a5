"""What a pair is worth on scenes that it has never seen: agreement of the draft, and missions that succeed.

Knows the models' port, the simulator and the executor; nothing of training. Decoding is the engine's own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.types import GenerationResult, Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.local import LocalVerifier
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.vlm import VlmModel
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import COLOURS, KINDS, random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import teacher
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.dialogues import Dialogue, draw
from vlm_spec_decode.train.frames import observe, sample_pose
from vlm_spec_decode.train.missions import Outcome, run_missions

DRAFT_LENGTHS = (4, 8)


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out frame, an instruction about it, and what the teacher would say."""

    observation: Observation
    dialogue: Dialogue


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure the pair; return the figures. They and pictures of failed missions go to `config.out`."""
    target = load_model(config.target, threads=config.threads)
    draft = load_model(config.draft, threads=config.threads) if config.draft else None
    config.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    if config.frames:
        asked = list(tqdm(questions(config), total=config.frames, desc="questions", mininterval=5))
        answers = [
            decode(target, None, q.observation, EngineConfig(strategy="autoregressive")) for q in asked
        ]
        figures |= answer_figures(target, asked, answers)
        if draft:
            figures |= draft_figures(target, draft, asked, answers)
    if config.episodes:
        outcomes = run_missions(target, config)
        figures |= mission_figures(outcomes)
        write_report(outcomes, config.out / "missions.jsonl")
    (config.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def questions(config: EvaluateConfig) -> Iterable[Question]:
    """Yield one question for each held-out scene, about frames as the robot's camera sends them."""
    camera: FrontCamera | None = None
    for seed in range(config.first_seed, config.first_seed + config.frames):
        world = World(random_scene(seed), seed=seed)
        camera = camera or FrontCamera(world)
        camera.attach(world)
        rng = np.random.default_rng([seed, 0xE7A1])
        world.teleport(sample_pose(world, rng))
        dialogue = draw(rng, teacher.things(observe(camera, world)))
        image = Image(camera.jpeg(), camera.width_px, camera.height_px)
        said = dialogue.observation
        yield Question(Observation(image, said.instruction, said.history), dialogue)
    if camera:
        camera.close()


def decode(
    target: VlmModel, draft: VlmModel | None, observation: Observation, config: EngineConfig
) -> GenerationResult:
    """Return one answer as the engine decodes it."""
    clock = VirtualClock()
    params = SamplingParams(stop_ids=target.codec.stop_ids, max_tokens=64)
    engine = Engine(draft, target.codec, LocalVerifier(target, clock), clock)
    ready = EngineConfig(config.strategy, params, config.draft_length)
    for update in engine.answer(observation, ready):
        if update.result:
            return update.result
    raise VsdError("the engine ended without a result")


def chain_logits(model: VlmModel, observation: Observation, tokens: Tokens) -> np.ndarray[Any, Any]:
    """Return logits [n, vocab] of every position of `tokens`, each given the ones before it."""
    context = model.open(observation)
    try:
        return context.score((), tokens[:-1], tuple(range(len(tokens) - 1)))
    finally:
        context.close()


def answer_figures(
    target: VlmModel, asked: list[Question], answers: list[GenerationResult]
) -> dict[str, Any]:
    """Compare answers with the teacher's, as a whole and by what they are about."""
    exact, actions = Counter[str](), Counter[str]()
    totals = Counter(q.dialogue.goal.verb for q in asked)
    for question, answer in zip(asked, answers, strict=True):
        wanted = target.codec.encode(question.dialogue.answer)
        said = tuple(t for t in answer.tokens if t not in target.codec.stop_ids)
        verb = question.dialogue.goal.verb
        exact[verb] += said == wanted
        actions[verb] += _calls(answer.text) == _calls(question.dialogue.answer)
    return {
        "answers": len(asked),
        "answer_exact": sum(exact.values()) / len(asked),
        "answer_same_kinds_of_action": sum(actions.values()) / len(asked),
        "answer_exact_by_verb": {v: round(exact[v] / n, 3) for v, n in totals.items()},
        "answer_tokens_mean": float(np.mean([len(a.tokens) for a in answers])),
    }


def draft_figures(
    target: VlmModel, draft: VlmModel, asked: list[Question], answers: list[GenerationResult]
) -> dict[str, Any]:
    """Agreement of the draft with the target's own answers, teacher-forced, and accepted lengths."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    lengths: dict[int, list[float]] = {g: [] for g in DRAFT_LENGTHS}
    for question, answer in zip(asked, answers, strict=True):
        guesses = chain_logits(draft, question.observation, answer.tokens).argmax(-1)
        for guess, token in zip(guesses.tolist(), answer.tokens, strict=True):
            group = token_group(target.codec.decode((token,)))
            total[group] += 1
            right[group] += guess == token
        for length in DRAFT_LENGTHS:
            config = EngineConfig(strategy="speculative", draft_length=length)
            again = decode(target, draft, question.observation, config)
            lengths[length] += [r.accepted for r in again.rounds if r.drafted == length]
    return {
        "acceptance": sum(right.values()) / sum(total.values()),
        "acceptance_by_token": {g: round(right[g] / n, 4) for g, n in sorted(total.items())},
        **{f"mean_accepted_of_{g}": float(np.mean(lengths[g])) for g in DRAFT_LENGTHS},
    }


def token_group(text: str) -> str:
    """Name what a token tells: colour, kind, side, number, or text."""
    if text in COLOURS:
        return "colour"
    if text in KINDS:
        return "kind"
    if text in {"left", "right", "ahead"}:
        return "side"
    return "number" if text.lstrip("-").replace(".", "").isdigit() else "text"


def mission_figures(outcomes: list[Outcome]) -> dict[str, Any]:
    """Share of missions that end within reach of the object without touching anything, and say so."""
    count = len(outcomes)
    return {
        "missions": count,
        "mission_success": sum(o.success for o in outcomes) / count,
        "mission_reached": sum(o.reached for o in outcomes) / count,
        "mission_collisions": sum(o.collisions > 0 for o in outcomes) / count,
        "mission_says_done": sum(o.status == "done" for o in outcomes) / count,
        "mission_answers_mean": float(np.mean([len(o.answers) for o in outcomes])),
        "mission_distance_m_median": float(np.median([o.distance_m for o in outcomes])),
        "mission_failed_seeds": [o.seed for o in outcomes if not o.success],
    }


def _calls(text: str) -> tuple[str, ...]:
    words = text.split()
    return tuple(name for name, mark in pairwise(words) if mark == "(")


def write_report(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write every mission with all its answers, one JSON line each."""
    with path.open("w") as file:
        for outcome in outcomes:
            file.write(json.dumps(outcome.summary()) + "\n")
