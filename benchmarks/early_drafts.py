"""Makes the early drafts of the decoding benchmark: the draft's own recipe, stopped long before its end.

    python benchmarks/early_drafts.py --data FRAMES --eye CHECKPOINT.pt [--out FOLDER]

A draft of a wanted acceptance is one that has not learned enough yet, never one made worse by swapping its
choices. Training pauses every 10 steps to measure; of each wanted acceptance the nearest state is kept. Run
it again when the shipped target changes; it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vlm_spec_decode.bench.pairs import PairLibrary, measure_pair
from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.models.loader import shipped
from vlm_spec_decode.train.config import recipe
from vlm_spec_decode.train.loop import run_train

WANTED = {"early47": 0.47, "early69": 0.69}
EVERY = 10
PRIVATE = ("data", "out", "eye", "start", "distil")
LEFT_OUT = shutil.ignore_patterns("*.pt", "*.partial", "log*")


def main() -> None:
    """Train, measure, keep."""
    parser = argparse.ArgumentParser(description="Make the early drafts of the decoding benchmark.")
    parser.add_argument("--data", type=Path, required=True, help="folder of `vsd train data`")
    parser.add_argument("--eye", type=Path, required=True, help="checkpoint of the shipped pair's eye")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--max-steps", type=int, default=600)
    options = parser.parse_args()
    nearest = dict.fromkeys(WANTED, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        for steps in range(EVERY, options.max_steps + 1, EVERY):
            record = run_train(
                recipe(
                    "draft",
                    data=options.data,
                    out=Path(folder),
                    eye=options.eye,
                    distil=shipped("target"),
                    stop_after=steps,
                    checkpoint_every=EVERY,
                )
            )
            found = measure_pair(PairLibrary(24).pair(f"{folder}+{shipped('target')}")).acceptance
            print(f"{steps} steps: acceptance {found:.3f}", flush=True)
            for name, wanted in WANTED.items():
                if abs(found - wanted) < nearest[name]:
                    nearest[name] = abs(found - wanted)
                    store(Path(folder), options.out / f"draft_{name}", record, found)
            if found > max(WANTED.values()) + 0.04:
                break


def store(folder: Path, out: Path, record: dict[str, Any], acceptance: float) -> None:
    """Copy a state of the draft, with a record that holds beyond this computer."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out, ignore=LEFT_OUT)
    config = {key: value for key, value in record["config"].items() if key not in PRIVATE}
    config["tokenizer"] = "tokenizer.json"
    about = {
        "role": "draft",
        "what": f"the shipped draft's recipe stopped after {record['steps']} steps; for the benchmark",
        "acceptance": round(acceptance, 4),
        "config": config,
        "eye": "taken over from the shipped pair",
        "distilled_from": "the shipped target",
        "data_digest": record["data"],
    }
    (out / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for path in out.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
