"""What the shipped models are worth in rooms, wordings and pairs that they have never seen.

    python benchmarks/models.py [--quick] [--models RUNS] [--text PAIR] [--out FOLDER]

Episodes run in virtual time with the project's own engine, gate and executor. --quick has fewer of everything
and says so; --models measures another pair, the folders target (with exits) and draft in RUNS; --text a
language-only pair alone, the folders text_target and text_draft in PAIR. Prints a table; the last line is one
JSON document. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from figures import Figure, report

from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.evaluate import questions, run_evaluate
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
        Figure("success_all", found["success"], 0.90, "at least", episodes),
        Figure("success_go_to", good / count, 0.95, "at least", kinds["go to"]),
        Figure("collisions_per_100", found["collisions_per_100"], 1.0, "at most", episodes),
        Figure("declined", found["declined"], 0.95, "at least", str(found["declined_by_kind"])),
        Figure("declined_a_proper_one", found["declined_a_proper_one"], 0.03, "at most", episodes),
        Figure("acceptance_greedy", found["acceptance_t0"], 0.94, "at least", str(tokens)),
        Figure("acceptance_temperature_1", found["acceptance_t1"], 0.85, "at least", "coupled"),
        Figure("mean_accepted_of_8", found["mean_accepted_of_8_t0"], 6.8, "at least", "greedy"),
        Figure("acceptance_numbers", tokens["number"], 0.85, "at least", "greedy"),
        Figure("exit_half_agrees", exits[len(exits) // 2]["agrees"], 0.85, "at least", "middle exit"),
        Figure("step_ratio", ratio, 5.0, "at least", "target over draft, one thread"),
    ]


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
    parser.add_argument("--out", type=Path, default=Path("out/models"), help="folder of figures and pictures")
    options = parser.parse_args()
    episodes, declined, frames = (60, 30, 40) if options.quick else (300, 100, 100)
    if options.text:
        pair = options.text / "text_target", options.text / "text_draft"
        found = run_text_evaluate(*pair, 100 if options.quick else 400)
        return report(text_figures(found), options.out / "text.json", text=found, quick=options.quick)
    folder = options.models
    pair = (folder / "target", folder / "draft") if folder else (shipped("target"), shipped("draft"))
    config = EvaluateConfig(*pair, episodes, frames, declined, out=options.out)
    ratio = step_ratio(pair)
    found = run_evaluate(config)
    return report(figures_of(found, ratio), options.out / "models.json", found=found, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
