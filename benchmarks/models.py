"""What the shipped models are worth in rooms, wordings and pairs that they have never seen.

    python benchmarks/models.py [--quick] [--models RUNS] [--text PAIR] [--out FOLDER]

Rooms, frames and sayings are drawn from a seed that is fresh in every run and is printed; --seed N repeats
one. --only spoken measures people's own phrasings alone, --only taught the taught wordings. Episodes run in
virtual time with the project's own engine, gate and executor. --quick has fewer of everything and says so;
--models measures another pair, the folders target (with exits) and draft in RUNS; --text a language-only
pair alone, the folders text_target and text_draft in PAIR. Prints a table; the last line is one JSON
document. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from figures import Figure, report

from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.episodes import run_missions
from vlm_spec_decode.train.evaluate import Pair, episode_figures, questions, run_evaluate
from vlm_spec_decode.train.spoken_dialogues import style_of
from vlm_spec_decode.train.spoken_evaluate import (
    fresh_seed,
    spoken_figures,
)
from vlm_spec_decode.train.spoken_tasks import held_out_pair_task, held_out_phrasing_task, pair_seeds
from vlm_spec_decode.train.text import run_text_evaluate

STEPS = 25


def step_s(model: VlmModel, observation: Observation) -> float:
    """Return the median time of one cached decoding step, one thread."""
    context = model.open(observation)
    context.prefill()
    token = model.codec.encode("ahead")[0]
    took = []
    for length in range(1, STEPS + 1):
        begin_s = time.perf_counter()
        context.choose((token,) * length)
        took.append(time.perf_counter() - begin_s)
    context.close()
    return statistics.median(took)


def shipped_size() -> Figure:
    """Return the size of all models that ship, in megabytes."""
    size = sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file())
    return Figure("shipped_mb", size / 1e6, 40.0, "at most", "all files of all models")


def step_ratio(pair: tuple[Path, Path]) -> float:
    """Return the target's step over the draft's, both models warm, in turn, the median of fifteen."""
    target, draft = (load_model(folder) for folder in pair)
    observation = next(iter(questions(EvaluateConfig(Path(), None, frames=1)))).observation
    pairs = [(step_s(target, observation), step_s(draft, observation)) for _ in range(16)][1:]
    return statistics.median(t / d for t, d in pairs)


def figures_of(found: dict[str, Any], ratio: float) -> list[Figure]:
    """Hold what evaluation found against the bars."""
    episodes = f"{found['episodes']} episodes"
    kinds = found["success_by_kind"]
    good, count = (int(n) for n in kinds["go to"].split("/"))
    tokens = found["acceptance_by_token_t0"]
    # The middle exit; the loader announces them from the first layer up.
    exits = list(found["exits"].values())
    return [
        Figure("success_all", found["success"], 0.96, "at least", episodes),
        Figure("success_go_to", good / count, 0.95, "at least", kinds["go to"]),
        Figure("collisions_per_100", found["collisions_per_100"], 0.7, "at most", episodes),
        Figure("declined", found["declined"], 0.96, "at least", str(found["declined_by_kind"])),
        Figure("declined_a_proper_one", found["declined_a_proper_one"], 0.02, "at most", episodes),
        Figure("acceptance_greedy", found["acceptance_t0"], 0.96, "at least", str(tokens)),
        Figure("acceptance_temperature_1", found["acceptance_t1"], 0.95, "at least", "coupled"),
        Figure("mean_accepted_of_8", found["mean_accepted_of_8_t0"], 7.0, "at least", "greedy"),
        Figure("acceptance_numbers", tokens["number"], 0.85, "at least", "greedy"),
        Figure("exit_half_agrees", exits[len(exits) // 2]["agrees"], 0.93, "at least", "middle exit"),
        Figure("step_ratio", ratio, 5.0, "at least", "target over draft, one thread"),
    ]


def spoken_figures_of(found: dict[str, Any]) -> list[Figure]:
    """Hold what a target makes of held-out phrasings against the bars."""
    shares, numbers, count = found["phrasings"], found["numbers"], f"{found['sayings']} sayings"
    episodes = found["episodes"]
    voices = ", ".join(f"{name} {row}" for name, row in found["by_voice"].items())
    tongues = ", ".join(f"{name} {row}" for name, row in found["by_tongue"].items())
    pairs = found["pairs"]
    figures = [
        Figure("phrasing_right", shares["right"], 0.92, "at least", f"{count}; {voices}"),
        Figure("phrasing_another_motion", shares["moves"], 0.01, "at most", f"{count}; {tongues}"),
        Figure(
            "phrasing_right_or_stands",
            shares["right"] + shares["stands"],
            0.99,
            "at least",
            "what is not right stands still and says why",
        ),
        Figure("number_exact", numbers["exact"], 0.98, "at least", "said distances, angles, durations"),
        Figure("number_off_a_quarter", numbers["off"], 0.002, "at most", "another number, or another motion"),
        Figure("no_motion", found["no_motion"], 0.99, "at least", str(found["no_motion_by_meaning"])),
    ]
    if episodes:
        share = episodes["success"]
        note = f"{episodes['episodes']} episodes; {episodes['success_by_kind']}"
        figures.append(Figure("success_held_out_phrasings", share, 0.93, "at least", note))
    if pairs:
        share, note = pairs["success"], f"{pairs['episodes']} episodes"
        figures.append(Figure("success_held_out_pairs", share, 0.93, "at least", note))
    return figures


def measure_spoken(target: Path, draft: Path, seed: int, *, quick: bool) -> dict[str, Any]:
    """Return what a target makes of held-out phrasings, open loop and in episodes."""
    model = load_model(target)
    pair = Pair.of(model, load_model(draft))
    frames, phrases, numbers, refused, episodes = (40, 80, 40, 40, 12) if quick else (80, 794, 300, 300, 300)
    found = spoken_figures(
        pair, style_of(target), seed, frames=frames, phrases=phrases, numbers=numbers, refused=refused
    )
    ran = run_missions(model, range(seed, seed + episodes), held_out_phrasing_task)
    pairs = run_missions(model, pair_seeds(seed, episodes // 3), held_out_pair_task)
    found |= {"sayings": phrases, "episodes": episode_figures(ran), "pairs": episode_figures(pairs)}
    return found


def text_figures(found: dict[str, Any]) -> list[Figure]:
    """Hold what the language-only pair does against the same bars for acceptance, and one for its plans."""
    answers = f"{found['answers']} answers"
    new = f"of new wordings {found['plan_exact_new_wordings']}, of new pairs {found['plan_exact_new_pairs']}"
    tokens = str(found["acceptance_by_token_t0"])
    return [
        Figure("text_plan_exact", found["plan_exact"], 0.90, "at least", f"{answers}; {new}"),
        Figure("text_plan_near", found["plan_near"], 0.95, "at least", "within 10 degrees and 0.2 m"),
        Figure("text_acceptance_greedy", found["acceptance_t0"], 0.94, "at least", tokens),
        Figure("text_acceptance_temperature_1", found["acceptance_t1"], 0.85, "at least", "coupled"),
    ]


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="60 episodes, 30 declined, 40 frames")
    parser.add_argument("--models", type=Path, default=None, help="folder of another pair than the shipped")
    parser.add_argument("--text", type=Path, default=None, help="folder of a language-only pair")
    parser.add_argument("--only", choices=("spoken", "taught"), default=None, help="one of the two parts")
    parser.add_argument(
        "--seed", type=int, default=None, help="first seed of the rooms; default: a fresh one"
    )
    parser.add_argument("--out", type=Path, default=Path("out/models"), help="folder of figures and pictures")
    options = parser.parse_args()
    episodes, declined, frames = (60, 30, 40) if options.quick else (300, 100, 100)
    seed = fresh_seed() if options.seed is None else options.seed
    print(f"seed {seed}")
    if options.text:
        pair = options.text / "text_target", options.text / "text_draft"
        found = run_text_evaluate(*pair, 100 if options.quick else 400, first_seed=seed)
        more = {"text": found, "quick": options.quick, "seed": seed}
        return report(text_figures(found), options.out / "text.json", **more)
    folder = options.models
    pair = (folder / "target", folder / "draft") if folder else (shipped("target"), shipped("draft"))
    figures: list[Figure] = []
    more: dict[str, Any] = {"quick": options.quick, "seed": seed}
    if options.only != "spoken":
        config = EvaluateConfig(*pair, episodes, frames, declined, seed, out=options.out)
        ratio = step_ratio(pair)
        more["found"] = run_evaluate(config)
        figures += figures_of(more["found"], ratio)
        figures.append(shipped_size())
    if options.only != "taught":
        more["spoken"] = measure_spoken(*pair, seed, quick=options.quick)
        figures += spoken_figures_of(more["spoken"])
    return report(figures, options.out / "models.json", **more)


if __name__ == "__main__":
    sys.exit(main())
