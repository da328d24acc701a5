"""Evaluation of a pair in held-out rooms: the draft's agreement, successful episodes, and a page about it.

The page has figures, bars by kind of instruction, exits, and every failure with its path: plain HTML with
inline SVG, without other files. Uses the models' port, the simulator and the executor; decoding is the
engine's own.

Agreement is how often the draft's token is the target's: teacher-forced on the target's own answers, and as
decoded. Tokens that a grammar forces are not counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.actions.parser import ActionParser
from vlm_spec_decode.actions.types import ACTION_NAMES
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ActionParseError, VsdError
from vlm_spec_decode.core.ports import ExitHook, Model, TextCodec
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.subword import compact
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import scene_description
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.episodes import DECLINED_KINDS, Episode, draw_task, run_missions
from vlm_spec_decode.train.frames import observe, sample_pose
from vlm_spec_decode.train.spoken_dialogues import drawer_of, knows_phrasings
from vlm_spec_decode.train.spoken_tasks import taught_phrasing_task
from vlm_spec_decode.train.teacher import Dialogue

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; color: #222 }
table { border-collapse: collapse } td { padding: .2rem .8rem .2rem 0; vertical-align: top }
.failure { display: grid; grid-template-columns: 16rem 1fr; gap: 1rem; margin: 1.5rem 0 } img { width: 100% }
ol { margin: .3rem 0; padding-left: 1.3rem; font-size: 13px } .why { color: #a33 }
"""


def write_page(figures: Mapping[str, Any], episodes: Sequence[Episode], folder: Path) -> Path:
    """Write `index.html` beside the pictures of failed episodes; return its path."""
    failed = [e for e in episodes if not e.success]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>",
        "<h1>Evaluation in held-out rooms</h1>",
        _table({k: v for k, v in figures.items() if isinstance(v, (int, float))}),
    ]
    for title, key in (("Success by kind", "success_by_kind"), ("Declined, by kind", "declined_by_kind")):
        if key in figures:
            parts += [f"<h2>{title}</h2>", _bars({k: _share(v) for k, v in figures[key].items()})]
    for mark, label in (("t0", "greedy"), ("t1", "temperature 1")):
        if rows := figures.get(f"acceptance_by_token_{mark}"):
            parts += [f"<h2>Draft acceptance by token, {label}</h2>", _bars(rows)]
    if exits := figures.get("exits"):
        agrees = {f"layer {layer}": row["agrees"] for layer, row in exits.items()}
        parts += ["<h2>Exits: first choice is the final one</h2>", _bars(agrees)]
    parts += [f"<h2>{len(failed)} failures of {len(episodes)}</h2>", *(_failure(e, folder) for e in failed)]
    path = folder / "index.html"
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _share(text: str) -> float:
    good, count = (int(n) for n in text.split("/"))
    return good / count


def _table(figures: Mapping[str, float]) -> str:
    rows = (f"<tr><td>{escape(k.replace('_', ' '))}<td>{v:.4g}" for k, v in figures.items())
    return f"<table>{''.join(rows)}</table>"


def _bars(shares: Mapping[str, float]) -> str:
    """Return a bar for each share in [0, 1]."""
    lines = []
    for row, (name, fraction) in enumerate(shares.items()):
        y = 24 * row
        lines.append(
            f'<text x="160" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="170" y="{y + 3}" width="400" height="16" fill="#eee"/>'
            f'<rect x="170" y="{y + 3}" width="{400 * fraction:.0f}" height="16" fill="#3572b0"/>'
            f'<text x="580" y="{y + 15}">{fraction:.0%}</text>'
        )
    return f'<svg width="640" height="{24 * len(shares)}" font-size="13">{"".join(lines)}</svg>'


def _failure(episode: Episode, folder: Path) -> str:
    task, name = episode.task, f"failed_{episode.task.seed}.png"
    picture = f'<img src="{name}" alt="path from above">' if (folder / name).exists() else ""
    answers = "".join(f"<li>{escape(text)}" for text in episode.answers)
    why = episode.reason or f"{episode.status}, {episode.collisions} collisions"
    where = "" if episode.item is None else f", {episode.distance_m:.2f} m from the {escape(task.thing)}"
    return (
        f'<div class="failure"><div>{picture}</div><div><b>{escape(task.goal.text)}</b> '
        f'({escape(task.kind)}, room {task.seed})<div class="why">{escape(why)}{where}</div>'
        f"<ol>{answers}</ol></div></div>"
    )


_DECLINED_FROM = 500_000
"""Offset of the seeds of the rooms for instructions that must be refused."""


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """One held-out frame, an instruction about it, and the teacher's answer."""

    observation: Observation
    dialogue: Dialogue


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure the pair; return the figures. They go to `config.out`, with a page (`index.html`)."""
    target = load_model(config.target, threads=config.threads)
    tell = taught_phrasing_task if knows_phrasings(config.target) else draw_task
    config.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    episodes: list[Episode] = []
    if config.frames:
        draft = load_model(config.draft, threads=config.threads) if config.draft else target
        pair = Pair.of(target, draft)
        asked = list(tqdm(questions(config), total=config.frames, desc="questions", mininterval=5))
        answers = [decode(pair, q.observation, pair.params()) for q in asked]
        figures |= answer_figures(asked, answers)
        if config.draft:
            figures |= draft_figures(pair, asked, answers)
    if config.episodes:
        seeds = range(config.first_seed, config.first_seed + config.episodes)
        episodes = run_missions(target, seeds, tell, config.max_answers, config.out)
        figures |= episode_figures(episodes)
        write_report(episodes, config.out / "episodes.jsonl")
    if config.declined:
        first = config.first_seed + _DECLINED_FROM
        seeds = range(first, first + config.declined)
        refused = run_missions(
            target, seeds, lambda s, w, c: tell(s, w, c, DECLINED_KINDS), config.max_answers, config.out
        )
        figures["declined"] = float(np.mean([e.success for e in refused]))
        figures["declined_by_kind"] = by_kind(refused)
        write_report(refused, config.out / "declined.jsonl")
        episodes = [*episodes, *refused]
    (config.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_page(figures, episodes, config.out)
    return figures


def questions(config: EvaluateConfig) -> Iterable[HeldOutQuestion]:
    """Yield one question for each held-out scene, with a frame as the robot's camera sends it.

    The questions are worded as those that the target was taught. Raises ModelNotFound.
    """
    camera: FrontCamera | None = None
    draw = drawer_of(config.target)
    for seed in range(config.first_seed, config.first_seed + config.frames):
        world = World(random_scene(seed), seed=seed)
        camera = camera or FrontCamera(world)
        camera.attach(world)
        rng = np.random.default_rng([seed, 0xE7A1])
        world.teleport(sample_pose(world, rng))
        dialogue = draw(rng, scene_description.read_objects(observe(camera, world)))
        image = Image(camera.jpeg(), camera.width_px, camera.height_px)
        observation = dialogue.observation
        yield HeldOutQuestion(Observation(image, observation.instruction, observation.history), dialogue)
    if camera:
        camera.close()


def answer_figures(asked: list[HeldOutQuestion], answers: list[GenerationResult]) -> dict[str, Any]:
    """Compare answers with the teacher's, in total and by verb."""
    exact, actions = Counter[str](), Counter[str]()
    totals = Counter(q.dialogue.goal.verb for q in asked)
    for question, answer in zip(asked, answers, strict=True):
        verb = question.dialogue.goal.verb
        exact[verb] += is_same_answer(answer.text, question.dialogue.answer)
        actions[verb] += _calls(answer.text) == _calls(question.dialogue.answer)
    return {
        "answers": len(asked),
        "answer_exact": sum(exact.values()) / len(asked),
        "answer_same_kinds_of_action": sum(actions.values()) / len(asked),
        "answer_exact_by_verb": {v: round(exact[v] / n, 3) for v, n in totals.items()},
        "answer_tokens_mean": float(np.mean([len(a.tokens) for a in answers])),
    }


def draft_figures(
    pair: Pair, asked: list[HeldOutQuestion], answers: list[GenerationResult]
) -> dict[str, Any]:
    """Agreement of draft and exits with the target's own answers, and accepted lengths."""
    observations = [q.observation for q in asked]
    greedy = [(o, a.tokens) for o, a in zip(observations, answers, strict=True)]
    figures: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        answered = greedy
        if temperature:
            params = pair.params(temperature)
            answered = [(o, decode(pair, o, params).tokens) for o in observations]
        found = acceptance(pair, answered, temperature)
        lengths = accepted_lengths(pair, observations, temperature)
        mark = f"t{temperature:.0f}"
        figures |= {f"acceptance_{mark}": found["all"], f"acceptance_by_token_{mark}": found["by_token"]}
        figures |= {f"mean_accepted_of_{g}_{mark}": value for g, value in lengths.items()}
    exits = exit_agreement(pair, greedy)
    return figures | {"exits": exits} if exits else figures


def episode_figures(episodes: list[Episode]) -> dict[str, Any]:
    """Share of successful episodes, in total and by kind of instruction."""
    count = len(episodes)
    new = [e.success for e in episodes if e.task.is_held_out_pair]
    ways = [ratio for e in episodes if e.success and (ratio := e.way_over_straight) is not None]
    return {
        "episodes": count,
        "success": sum(e.success for e in episodes) / count,
        "success_by_kind": by_kind(episodes),
        "success_held_out_pairs": float(np.mean(new)) if new else None,
        "episodes_held_out_pairs": len(new),
        "collisions_per_100": 100 * sum(e.collisions > 0 for e in episodes) / count,
        "declined_a_proper_one": sum(e.declined and not e.success for e in episodes) / count,
        "answers_mean": float(np.mean([len(e.answers) for e in episodes])),
        "way_over_straight_median": float(np.median(ways)) if ways else None,
        "way_over_straight_p90": float(np.quantile(ways, 0.9)) if ways else None,
        "failed_seeds": [e.task.seed for e in episodes if not e.success],
    }


def by_kind(episodes: list[Episode]) -> dict[str, str]:
    """Return "successes/count" for each kind of instruction."""
    kinds = sorted({e.task.kind for e in episodes})
    rows = {k: [e.success for e in episodes if e.task.kind == k] for k in kinds}
    return {k: f"{sum(row)}/{len(row)}" for k, row in rows.items()}


def _calls(text: str) -> tuple[str, ...]:
    parser = ActionParser()
    # An answer that was cut off counts with the calls that it has.
    with suppress(ActionParseError):
        parser.feed(text)
    return tuple(ACTION_NAMES[type(action)] for action in parser.actions)


def is_same_answer(text: str, wanted: str) -> bool:
    """Whether a text is the teacher's answer, written in words or in subwords."""
    return text.split() in (wanted.split(), compact(wanted).split())


def write_report(episodes: Iterable[Episode], path: Path) -> None:
    """Write every episode with all its answers, one JSON line each."""
    with path.open("w") as file:
        for episode in episodes:
            file.write(json.dumps(episode.summary()) + "\n")


DRAFT_LENGTHS = (2, 4, 6, 8)
TEMPERATURES = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """Target and draft with the codec of their tokenizer."""

    target: Model
    draft: Model
    codec: TextCodec
    stop_ids: Tokens

    @classmethod
    def of(cls, target: LoadedModel, draft: LoadedModel) -> Pair:
        """Restrict both to the action language, as edge and cloud do."""
        spoken = language()
        return cls(
            constrained(target, target.codec, spoken),
            constrained(draft, draft.codec, spoken),
            target.codec,
            target.codec.stop_ids,
        )

    def params(self, temperature: float = 0.0, seed: int = 0) -> SamplingParams:
        """Return the parameters of one answer."""
        return SamplingParams(temperature=temperature, seed=seed, stop_ids=self.stop_ids, max_tokens=64)


def decode(
    pair: Pair, observation: Observation, params: SamplingParams, draft_length: int | None = None
) -> GenerationResult:
    """Return one answer as the engine decodes it, `autoregressive` without a draft length."""
    clock = VirtualClock()
    name = "autoregressive" if draft_length is None else "speculative"
    draft = None if draft_length is None else pair.draft
    engine = Engine(draft, pair.codec, LocalVerifier(pair.target, clock), clock)
    for update in engine.answer(
        observation, EngineConfig(strategy=name, params=params, draft_length=draft_length or 1)
    ):
        if update.result:
            return update.result
    raise VsdError("the engine ended without a result")


def chain_logits(
    model: Model, observation: Observation, tokens: Tokens, on_exit: ExitHook | None = None
) -> Logits:
    """Return logits [n, vocab] of every position of `tokens`, each given the ones before it."""
    context = model.open(observation)
    try:
        return context.score((), tokens[:-1], tuple(range(len(tokens) - 1)), on_exit=on_exit)
    finally:
        context.close()


def free_positions(model: Model, observation: Observation, tokens: Tokens) -> tuple[int, ...]:
    """Return the positions of an answer at which the grammar allows more than one token."""
    context = model.open(observation)
    try:
        free, at = [], 0
        while at < len(tokens):
            # Tokens that the grammar forces are no choice, so they do not measure the draft.
            forced = context.forced(tokens[:at])
            if forced:
                at += len(forced)
                continue
            free.append(at)
            at += 1
        return tuple(free)
    finally:
        context.close()


def acceptance(
    pair: Pair, answers: Iterable[tuple[Observation, Tokens]], temperature: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Share of the target's free tokens that the draft would have chosen, in total and by kind of token."""
    right, total = Counter[str](), Counter[str]()
    for observation, tokens in answers:
        params = pair.params(temperature, seed)
        logits = chain_logits(pair.draft, observation, tokens)
        for at in free_positions(pair.target, observation, tokens):
            group = token_group(pair.codec.decode((tokens[at],)))
            total[group] += 1
            # Both draw with the noise of the same position, as under the `coupled` rule.
            right[group] += pick(logits[at], at, params) == tokens[at]
    return {
        "all": sum(right.values()) / max(1, sum(total.values())),
        "by_token": {g: round(right[g] / n, 4) for g, n in sorted(total.items())},
        "tokens": sum(total.values()),
    }


def accepted_lengths(
    pair: Pair, asked: Iterable[Observation], temperature: float = 0.0, seed: int = 0
) -> dict[int, float]:
    """Mean number of accepted tokens of a full draft, by draft length."""
    observations = tuple(asked)
    means = {}
    for length in DRAFT_LENGTHS:
        found: list[float] = []
        for observation in observations:
            result = decode(pair, observation, pair.params(temperature, seed), length)
            # Only full drafts: the last round of an answer may have had no room for more.
            found += [r.accepted for r in result.rounds if r.drafted >= length]
        means[length] = float(np.mean(found)) if found else float("nan")
    return means


def exit_agreement(pair: Pair, answers: Iterable[tuple[Observation, Tokens]]) -> dict[int, dict[str, float]]:
    """Share of positions at which each exit's first choice is the final one, also where it is confident."""
    same: dict[int, list[tuple[bool, float]]] = {}
    for observation, tokens in answers:
        exits: dict[int, Logits] = {}

        def keep(exit_layer: int, logits: Logits, exits: dict[int, Logits] = exits) -> None:
            exits[exit_layer] = logits

        final = chain_logits(pair.target, observation, tokens, keep).argmax(-1)
        for layer, logits in exits.items():
            same.setdefault(layer, []).extend(zip(logits.argmax(-1) == final, _top(logits), strict=True))
    return {layer: _calibration(rows) for layer, rows in sorted(same.items())}


def token_group(text: str) -> str:
    """Return the kind of a token: colour, kind, side, number, or text."""
    text = text.strip()
    if text in COLOURS:
        return "colour"
    if text in KINDS:
        return "kind"
    if text in {"left", "right", "ahead"}:
        return "side"
    return "number" if text.lstrip("-").replace(".", "").isdigit() else "text"


def _top(logits: Logits) -> Iterator[float]:
    # softmax of the largest: 1 / sum(exp(x - max)); the shift keeps exp from overflowing.
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return iter((shifted.max(-1) / shifted.sum(-1)).tolist())


def _calibration(rows: list[tuple[bool, float]]) -> dict[str, float]:
    hits, confidence = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    sure = confidence >= 0.9
    return {
        "agrees": float(hits.mean()),
        "share_sure": float(sure.mean()),
        "agrees_when_sure": float(hits[sure].mean()) if sure.any() else float("nan"),
        "mean_confidence": float(confidence.mean()),
    }
