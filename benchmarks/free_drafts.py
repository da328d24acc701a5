"""What earlier answers are worth as drafts, beside a draft model and without one.

    python benchmarks/free_drafts.py [--quick] [--models RUNS] [--first-seed N] [--out FOLDER]

Missions in held-out rooms, two in each, are run once by the target alone; their questions are then asked
again in the same order, in virtual time over the Go2's profile and an LTE link, by each way of decoding:
every way starts with an empty memory and keeps its own from question to question. The sample bag's
questions likewise. One way leaves out what has shown to be worthless (`draft_floor`). All
ways must give the same tokens. Prints a table; the last line is one JSON document.
The exit code is 1 if a bar is missed. --quick has few rooms.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import Figure, report
from tqdm import tqdm

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bags.events import Events, Topics
from vlm_spec_decode.bags.questions import AskPlan, questions
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.settings import SAMPLE
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import ModelContext
from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Observation, SamplingParams
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.edge.answer_cache import AnswerCache
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.models.paced import paced_draft
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.episodes import EpisodeRunner, draw_task

PROFILE, LINK = "go2_a100", "lte"
FIRST_SEED = 1_700_000
"""Rooms apart from those of training and of other measurements."""


class Forgetful(FreeDrafts):
    """A memory that keeps nothing: the way without free drafts."""

    def add(self, instruction: str, answer: tuple[int, ...]) -> None:
        """Forget it."""


@dataclass(frozen=True, slots=True)
class Way:
    """How questions are answered: a strategy, whether earlier answers are drafts, and `draft_floor`."""

    strategy: str
    remembers: bool = False
    draft_floor: float = 0.0

    @property
    def name(self) -> str:
        """What tables call it."""
        name = f"{self.strategy}, free drafts" if self.remembers else self.strategy
        return f"{name}, skipping" if self.draft_floor else name


WAYS = (
    Way("autoregressive"),
    Way("retrieval", remembers=True),
    Way("hybrid"),
    Way("hybrid", remembers=True),
    Way("hybrid", remembers=True, draft_floor=0.03),
)


class Recorder:
    """A target that writes down what it is asked."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self.asked: list[Observation] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def open(self, observation: Observation) -> ModelContext:
        """Open an answer and keep its question."""
        self.asked.append(observation)
        return self._model.open(observation)


def missions(target: LoadedModel, rooms: int, first_seed: int) -> Iterator[tuple[int, Observation]]:
    """Yield (mission of its room, question) of two missions in each room, as the target carries them out."""
    recorder, runner = Recorder(target), None
    for seed in tqdm(range(first_seed, first_seed + rooms), desc="missions", mininterval=5):
        for mission in range(2):
            world = World(random_scene(seed), seed=seed)
            runner = runner or EpisodeRunner(recorder, world)  # type: ignore[arg-type]
            runner.camera.attach(world)
            # The second mission's task is drawn as that of another seed, about this room.
            task = draw_task(seed + 10_000_000 * mission, world, runner.camera)
            recorder.asked.clear()
            runner.run(task, world, max_answers=12)
            yield from ((mission, observation) for observation in recorder.asked)


def bag_questions() -> Iterator[tuple[int, Observation]]:
    """Yield (0, question) of the bag that ships."""
    source = open_bag(SAMPLE)
    for question in questions(Events(source, Topics().choose(source.topics)), AskPlan()):
        yield 0, question.observation


def answered(
    pair: tuple[LoadedModel, LoadedModel], way: Way, asked: Sequence[Observation]
) -> tuple[list[GenerationResult], int]:
    """Return the answers to all questions, one after the other, by one engine, and the rows drafted."""
    target, draft = pair
    spoken, clock = language(), VirtualClock()
    hardware, link = load_hardware(PROFILE), load_link(LINK)
    held, drafter = constrained(target, target.codec, spoken), constrained(draft, draft.codec, spoken)
    verifier = VirtualVerifier(held, hardware, link, clock, memory=FreeDrafts() if way.remembers else None)
    params = SamplingParams(stop_ids=target.codec.stop_ids, max_tokens=64)
    config = EngineConfig(strategy=way.strategy, params=params, draft_floor=way.draft_floor)
    drafted = list[int]()

    def draft_s(rows: int, is_first: bool = False) -> float:
        drafted.append(rows)
        return hardware.draft_s(rows, is_first)

    paced = replace(paced_draft(drafter, hardware, clock), duration_s=draft_s)
    engine = Engine(paced, target.codec, verifier, clock, config)
    engine._answer_cache = AnswerCache(memory=FreeDrafts() if way.remembers else Forgetful())
    found = []
    for observation in tqdm(asked, desc=way.name, mininterval=5):
        *_, last = engine.answer(observation)
        assert last.result is not None
        found.append(last.result)
    return found, sum(drafted)


def sums(answers: Sequence[GenerationResult]) -> dict[str, float]:
    """Return passes, seconds and sent nodes of an answer, on average, and tokens of a pass."""
    passes = sum(a.target_passes for a in answers)
    return {
        "answers": len(answers),
        "passes": passes / len(answers),
        "tokens_per_pass": sum(len(a.tokens) for a in answers) / passes,
        "seconds": sum(a.total_s for a in answers) / len(answers),
        "sent": sum(each.drafted for a in answers for each in a.rounds) / len(answers),
    }


def measure(pair: tuple[LoadedModel, LoadedModel], rows: Sequence[tuple[int, Observation]]) -> dict[str, Any]:
    """Return the sums of each way, of all questions and of those of second missions."""
    asked = [observation for _, observation in rows]
    second = [i for i, (mission, _) in enumerate(rows) if mission]
    found, truth = dict[str, Any](), None
    for way in WAYS:
        answers, drafted = answered(pair, way, asked)
        tokens = [a.tokens for a in answers]
        truth = truth or tokens
        if tokens != truth:
            raise AssertionError(f"{way.name} says other tokens")
        found[way.name] = {"all": sums(answers) | {"drafted": drafted / len(answers)}}
        if second:
            found[way.name]["second"] = sums([answers[i] for i in second])
    return found


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="6 rooms")
    parser.add_argument("--models", type=Path, default=None, help="folder of another pair than the shipped")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", type=Path, default=Path("out/free_drafts"))
    options = parser.parse_args()
    folders = [options.models / n if options.models else shipped(n) for n in ("target", "draft")]
    target, draft = (load_model(folder) for folder in folders)
    rooms = 6 if options.quick else 40
    found = {
        "rooms": measure((target, draft), list(missions(target, rooms, options.first_seed))),
        "sample bag": measure((target, draft), list(bag_questions())),
    }
    figures = []
    for place, ways in found.items():
        for name, rows in ways.items():
            row = rows["all"]
            print(f"{place:11} {name:22} " + "  ".join(f"{key} {value:.2f}" for key, value in row.items()))
        with_free, without = ways["hybrid, free drafts"]["all"], ways["hybrid"]["all"]
        ratio = with_free["passes"] / without["passes"]
        figures.append(
            Figure(f"passes_{place.replace(' ', '_')}", ratio, 0.85, "at most", "with the draft model")
        )
        skipping = ways["hybrid, free drafts, skipping"]["all"]
        for key in ("drafted", "sent"):
            ratio, name = skipping[key] / with_free[key], f"{key}_{place.replace(' ', '_')}"
            figures.append(Figure(name, ratio, 0.6, "at most", "nodes with skipping"))
        ratio, name = with_free["seconds"] / skipping["seconds"], f"speed_{place.replace(' ', '_')}"
        figures.append(Figure(name, ratio, 0.99, "at least", "with skipping"))
    alone = [
        found["rooms"][name]["second"]["seconds"] for name in ("autoregressive", "retrieval, free drafts")
    ]
    figures.append(
        Figure("retrieval_speedup", alone[0] / alone[1], 1.5, "at least", "second mission of a room")
    )
    return report(figures, options.out / "free_drafts.json", found=found, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
