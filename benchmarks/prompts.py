"""Records the questions of the decoding benchmark: held-out rooms as the robot's camera sends them.

    python benchmarks/prompts.py [--count N] [--first-seed N] [--out FOLDER]

Writes one JPEG per question, prompts.json (file, size, instruction, history, seed) and told.json, as many
questions about rooms that are told in words. The rooms lie apart from those of training and of
`vsd train evaluate`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vlm_spec_decode.bench.pairs import DESCRIBED_PROMPTS, FOLDER, FRAME_PROMPTS
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.evaluate import questions
from vlm_spec_decode.train.text_dataset import held_out_dialogue


def main() -> None:
    """Render and write."""
    parser = argparse.ArgumentParser(description="Record the questions of the decoding benchmark.")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=1_300_000)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    config = EvaluateConfig(Path(), None, frames=options.count, first_seed=options.first_seed)
    for number, question in enumerate(questions(config)):
        observation = question.observation
        assert observation.image is not None
        name = f"{number:02}.jpg"
        (options.out / name).write_bytes(observation.image.jpeg)
        row = {"file": name, "width": observation.image.width, "height": observation.image.height}
        words = {"instruction": observation.instruction, "history": list(observation.history)}
        rows.append({**row, **words, "seed": options.first_seed + number})
    described = []
    for seed in range(options.first_seed, options.first_seed + options.count):
        asked = held_out_dialogue(seed).observation
        described.append({"instruction": asked.instruction, "history": list(asked.history), "seed": seed})
    for name, found in ((FRAME_PROMPTS, rows), (DESCRIBED_PROMPTS, described)):
        (options.out / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} questions of both kinds in {options.out}")


if __name__ == "__main__":
    main()
