"""How long several answers take at once: one robot, link and draft model, shared passes; in virtual time.

    python benchmarks/several_answers.py [--rooms 6] [--profiles go2_a100,orin_nano_h100x4_32b]

The frames are those of a robot that turns by 60 degrees in simulated rooms, the models the shipped pair. The
same questions are asked one after the other and all at once. Tokens are the same in both; the run fails if
not.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.core.types import MAX_OPEN_ANSWERS, Observation, Tokens
from vlm_spec_decode.edge.factory import ModelPair, engine_config, load_pair, virtual_engine
from vlm_spec_decode.edge.open_answers import OpenAnswers
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.physics.physical_world import make_world
from vlm_spec_decode.sim.scene import random_scene

LINK = "lte"
INSTRUCTION = "find the green ball"
STRATEGIES = ("hybrid", "speculative", "autoregressive")
TURN_RADPS, TURN_S, SETTLE_S, TICK_S = 1.0, 1.047, 0.8, 0.05


@dataclass(frozen=True, slots=True)
class Took:
    """What the questions of a room took, in seconds: to the first commit, to the end of all, of the GPU."""

    first_s: float
    all_s: float
    gpu_s: float
    tokens: tuple[Tokens, ...]


def frames(rooms: int) -> list[list[bytes]]:
    """Return for each room the frames of a robot that turns on the spot, 60 degrees at a time."""
    found, camera = list[list[bytes]](), None
    for seed in range(rooms):
        world = make_world(random_scene(seed), body="kinematic", seed=seed)
        camera = camera or FrontCamera(world)
        robot = HeadlessGo2(world, camera=camera)
        robot.start()
        room = list[bytes]()
        for _ in range(MAX_OPEN_ANSWERS):
            room.append(robot.frame()[0].jpeg)
            for yaw_radps, seconds in ((TURN_RADPS, TURN_S), (0.0, SETTLE_S)):
                until_s = robot.clock.now() + seconds
                while robot.clock.now() < until_s:
                    robot.move(0.0, 0.0, yaw_radps)
                    robot.clock.sleep(TICK_S)
        found.append(room)
    return found


def ask(pair: ModelPair, profile: str, strategy: str, room: list[bytes], at_once: bool) -> Took:
    """Ask about the frames of a room, all at once or one after the other."""
    settings = EdgeSettings(strategy=strategy, link=load_link(LINK))
    engine, verifier = virtual_engine(
        pair, load_link(LINK), load_hardware(profile), engine_config(settings, pair.stop_ids)
    )
    waves = [room] if at_once else [[frame] for frame in room]
    tokens, firsts = list[Tokens](), list[float]()
    for wave in waves:
        with OpenAnswers(engine) as answers:
            asked_s = engine.clock.now()
            asked = [answers.ask(Observation(engine.picture(frame), INSTRUCTION)) for frame in wave]
            said: dict[int, Tokens] = {}
            first_s = 0.0
            while step := answers.next():
                if step.update is None:
                    raise SystemExit(f"an answer failed: {step.error}")
                first_s = first_s or step.at_s - asked_s
                number = asked.index(step.answer)
                said[number] = said.get(number, ()) + step.update.tokens
            tokens += [said[number] for number in range(len(wave))]
            firsts.append(first_s)
    return Took(firsts[0], engine.clock.now(), verifier.gpu_s, tuple(tokens))


def main() -> None:
    """Print a table: medians over the rooms."""
    parser = argparse.ArgumentParser(description="Several answers at once, in virtual time.")
    parser.add_argument("--rooms", type=int, default=6)
    parser.add_argument("--profiles", default="go2_a100,orin_nano_h100x4_32b")
    options = parser.parse_args()
    rooms, pair = frames(options.rooms), load_pair()
    columns = (
        "profile",
        "strategy",
        "answers",
        "one by one",
        "at once",
        "over one by one",
        "over one",
        "GPU",
    )
    print(f"| {' | '.join(columns)} |")
    print(f"| {' | '.join(['---'] * len(columns))} |")
    for profile in options.profiles.split(","):
        for strategy in STRATEGIES:
            one_s = statistics.median(ask(pair, profile, strategy, room[:1], True).all_s for room in rooms)
            for count in range(2, MAX_OPEN_ANSWERS + 1):
                both = [
                    [ask(pair, profile, strategy, room[:count], at_once) for at_once in (False, True)]
                    for room in rooms
                ]
                if any(one.tokens != other.tokens for one, other in both):
                    raise SystemExit(f"{strategy}: other tokens at once than one by one")
                serial_s, at_once_s = (statistics.median(pair[i].all_s for pair in both) for i in (0, 1))
                gpu = statistics.median(other.gpu_s / one.gpu_s for one, other in both)
                print(
                    f"| {profile} | {strategy} | {count} | {serial_s:.2f} s | {at_once_s:.2f} s | "
                    f"{at_once_s / serial_s:.2f} | {at_once_s / one_s:.2f} | {gpu:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
