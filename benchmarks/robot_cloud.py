"""The case of benchmarks/robot.py in which the cloud is lost in the middle of an answer."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

from figures import Figure
from PIL import Image as PilImage
from robot_rig import freeze, until

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.edge.image_upload import for_uplink
from vlm_spec_decode.mission.state import END_STATES
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.train.evaluate import Pair, decode

if TYPE_CHECKING:
    from robot_bench import Bench

FAULTS = ("killed", "cut", "frozen")
IN_FLIGHT_S = 0.15
"""What was committed before the fault may still be on its way to the topics."""

MIDDLE_CHARS = 4
UNSAID_S = 0.25
"""Time after a question was sent in which no token comes yet: the target computes."""


def lose_cloud(bench: Bench, count: int, instruction: str) -> list[Figure]:
    """Return how soon the node falls back, and in how many trials nothing moved on unverified tokens."""
    target = load_model(shipped("target"))
    pair = Pair.of(target, load_model(shipped("draft")))
    slowest_s, verified, trials = 0.0, 0, 0
    bench.vlm(link_file=str(bench.link), fallback="hold", hold_timeout_s=60.0)
    for fault in FAULTS:
        for number in range(count):
            bench.home()
            spent_s, is_verified = _trial(bench, fault, instruction, pair, before_first_token=number % 2 == 1)
            slowest_s, verified, trials = max(slowest_s, spent_s), verified + is_verified, trials + 1
    bench.kill("vlm_node")
    note = f"{count} each of {', '.join(FAULTS)}; every other one before a word was said"
    return [
        Figure("cloud_lost_fallback_s", slowest_s, 1.0, "at most", f"slowest; {note}"),
        Figure("cloud_lost_kept", verified / trials, 1.0, "at least", f"{verified} of {trials}; {note}"),
    ]


def _trial(
    bench: Bench, fault: str, instruction: str, pair: Pair, before_first_token: bool
) -> tuple[float, bool]:
    """Lose the cloud once; return the time to the fallback, and whether all that moved was verified.

    Messages under way when the cloud was lost may still end an answer. Then the robot carries that out, as it
    should, and the loss affects the next answer: time counts from the request of that one.
    """
    operator, mission = bench.operator, bench.name()
    heard, planned = len(operator.partials), len(operator.plans)
    operator.ask(instruction, mission)
    if before_first_token:
        until(lambda: "answering" in operator.states(mission), 60, "a question")
        time.sleep(UNSAID_S)
    else:
        until(
            lambda: any(len(partial) > MIDDLE_CHARS for _, partial in operator.partials[heard:]),
            60,
            "half an answer",
        )
    lost_s = _break(bench, fault)
    until(lambda: "holding" in operator.states(mission) or _over(bench, mission), 20, "the fallback")
    if "holding" not in operator.states(mission):
        # The answer had ended before the fault; the robot stands because there is no new one.
        mend_cloud(bench, fault)
        operator.withdraw(mission) if not _over(bench, mission) else None
        return 0.0, True
    states = [(at, status.state) for at, status in operator.vlm_statuses if status.mission == mission]
    fell_s = next(at for at, state in states if state == "holding")
    asked_s = max(at for at, state in states if state == "answering" and at < fell_s)
    time.sleep(0.6)
    plans = [(at, plan) for at, plan in operator.plans[planned:] if plan.mission == mission]
    late = any(plan.actions for at, plan in plans if at > fell_s + IN_FLIGHT_S)
    moves = bench.tap.moves(fell_s + 0.3)
    text = operator.partials[-1][1] if len(operator.partials) > heard else ""
    stamps = [plan.stamp_s for _, plan in plans if plan.answer >= 1]
    is_true = _is_verified(bench, instruction, text, [p for _, p in plans if p.actions], stamps, pair)
    mend_cloud(bench, fault)
    operator.withdraw(mission)
    return fell_s - max(lost_s, asked_s), not late and not moves and is_true


def _is_verified(bench, instruction, text, with_actions, stamps, pair) -> bool:  # type: ignore[no-untyped-def]
    """Return whether text and actions are the beginning of the target's own answer to the same frame."""
    frames = bench.operator.frames
    stamp = min(frames, key=lambda at: abs(at - stamps[0])) if frames and stamps else None
    if stamp is None or abs(stamp - stamps[0]) > 1e-3:
        return not with_actions
    with PilImage.open(io.BytesIO(frames[stamp])) as opened:
        image = Image(frames[stamp], *opened.size)
    own_text = decode(pair, Observation(for_uplink(image.jpeg), instruction, (), stamp), pair.params()).text
    actions = parse_answer(own_text)
    return own_text.startswith(text) and all(p.actions == actions[: len(p.actions)] for p in with_actions)


def _over(bench: Bench, mission: str) -> bool:
    return bool(END_STATES & set(bench.operator.states(mission)))


def _break(bench: Bench, fault: str) -> float:
    if fault == "killed":
        return bench.kill("cloud")
    if fault == "cut":
        bench.wire.is_cut.set()
    else:
        freeze(bench.pid("cloud"), True)
    return time.monotonic()


def mend_cloud(bench: Bench, fault: str) -> None:
    """Undo a fault, and wait until the VLM node has its cloud again."""
    before = len(bench.operator.vlm_statuses)
    if fault == "killed":
        bench.cloud(bench.address)
    elif fault == "cut":
        bench.wire.mend()
    else:
        freeze(bench.pid("cloud"), False)
    until(
        lambda: any(
            status.state in {"ready", "looking"} for _, status in bench.operator.vlm_statuses[before:]
        ),
        60,
        "the cloud again",
    )
