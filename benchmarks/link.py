"""Two strategies over one encrypted socket on loopback, turn by turn on the same frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vlm_spec_decode.core.types import GenerationResult, Image, Observation
from vlm_spec_decode.demo.processes import Processes
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.images import for_uplink
from vlm_spec_decode.edge.setup import EdgeSettings, bring_up
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.config import HELD_OUT_SEED
from vlm_spec_decode.transport import keys


@dataclass(frozen=True)
class LinkFigures:
    """Means over all answers; ratios are of sums."""

    same: float
    time_ratio: float
    pass_ratio: float
    image_crossings: float
    uplink_per_round: float


def measure_link(processes: Processes, folder: Path, target: str, draft: str, answers: int) -> LinkFigures:
    """Ask about `answers` held-out frames, the order of the strategies alternating."""
    folder.mkdir(parents=True, exist_ok=True)
    keys.generate(folder / "keys")
    options = ["--bind", "tcp://127.0.0.1:*", "--keys", str(folder / "keys"), "--model", target, "--json"]
    cloud = processes.start("cloud", ["-m", "vlm_spec_decode.cli", "cloud", *options])
    address = str(processes.wait_ready(cloud, 90)["address"])
    runtime = bring_up(EdgeSettings(cloud=address, keys=folder / "keys", draft=draft))
    plain, fast, crossings = [], [], []
    try:
        for number in range(answers):
            observation = _observation(HELD_OUT_SEED + 500 + number)
            order = ("autoregressive", "speculative")
            results = {
                n: _ask(runtime.engine, observation, n) for n in (order if number % 2 else order[::-1])
            }
            plain.append(results["autoregressive"])
            fast.append(results["speculative"])
            assert observation.image
            sent = sum(r.usage.image_bytes for r in results.values())
            crossings.append(sent / len(observation.image.jpeg))
    finally:
        runtime.close()
    return LinkFigures(
        same=sum(a.tokens == b.tokens for a, b in zip(plain, fast, strict=True)) / answers,
        time_ratio=sum(r.total_s for r in fast) / sum(r.total_s for r in plain),
        pass_ratio=sum(r.target_passes for r in fast) / sum(r.target_passes for r in plain),
        image_crossings=max(crossings),
        uplink_per_round=sum(r.usage.uplink_bytes for r in fast) / sum(r.target_passes for r in fast),
    )


def _observation(seed: int) -> Observation:
    scene = random_scene(seed)
    camera = FrontCamera(World(scene))
    image: Image = for_uplink(camera.jpeg())
    camera.close()
    return Observation(image, f"go to the {scene.objects[0].name}")


def _ask(engine: Engine, observation: Observation, strategy: str) -> GenerationResult:
    *_, last = engine.answer(observation, replace(engine.config, strategy=strategy))
    if last.result is None:
        raise RuntimeError("the answer ended without a result")
    return last.result
