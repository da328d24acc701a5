"""Records the sample bag that ships with the package: one simulated walk, several instructions, labels.

    python benchmarks/sample_bag.py [--out DIR]

The robot, cloud and nodes are those of `vsd demo`; so is the form of the bag. The room is one that training
has not seen. The bag replaces the one in vlm_spec_decode/assets/sample_bag.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.demo.process_stack import ProcessStack, ProcessStackConfig
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.transport.keys import generate

SEED = 1_000_006
TIMEOUT_S = 90.0
MAX_BYTES = 10 * 2**20


def instructions() -> list[str]:
    """Return the robot's instructions, in order."""
    first, second, *_ = random_scene(SEED).names
    return [
        f"turn to the {first}",
        f"walk to the {first}",
        f"go to the {second} and stop 1.2 metres away",
        "sit down",
    ]


def record(out: Path) -> int:
    """Walk, label and write; return the number of labelled answers."""
    scene, labelled = random_scene(SEED), 0
    with tempfile.TemporaryDirectory(prefix="vsd-sample-") as name:
        keys, truth = Path(name) / "keys", Path(name) / "truth.json"
        generate(keys)
        room = ("--scene-seed", str(SEED))
        config = ProcessStackConfig(room, 0, keys, truth, "hybrid", "coupled", "latency", None, out)
        with ProcessStack(config, WallClock(), random.Random(), print) as stage:
            stage.set_up()
            stories = [(text, stage.run_mission(text, TIMEOUT_S)) for text in instructions()]
            print(f"collisions: {stage.stop().collisions}")
            for text, story in stories:
                labelled += stage.add_labels(scene, text, story)
    return labelled


def main() -> int:
    """Record the bag and copy it into the assets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/sample"), help="folder of logs and the bag")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    labelled = record(out)
    size = sum(path.stat().st_size for path in (out / "bag").iterdir())
    print(f"{labelled} labelled answers, {size / 2**20:.1f} MB")
    if size > MAX_BYTES:
        return 1
    destination = ASSETS / "sample_bag"
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(out / "bag", destination)
    return 0


if __name__ == "__main__":
    sys.exit(main())
