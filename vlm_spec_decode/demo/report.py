"""The result of a demo: its steps from the mission's topics, figures, a table, and pictures.

`decode_again` decodes the same answers with another strategy, about the same frames and histories.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.core.images import drawable
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.demo.timeline import TimelineRecorder
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.image_upload import UPLINK_WIDTH_PX, for_uplink_again
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission.progress import MissionProgress, MissionReport
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport
from vlm_spec_decode.mission.state import END_STATES, LOOK_USED, NOTES, MissionStatus
from vlm_spec_decode.sim.ground_truth import GroundTruth
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.views import WorldViews, save_png
from vlm_spec_decode.sim.world import World


@dataclass(slots=True)
class MissionStep:
    """One step of a mission: frame, answer, actions."""

    number: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    actions: tuple[str, ...] = ()
    executed: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    stamp_s: float = 0.0
    image_width: int = UPLINK_WIDTH_PX
    image_digest: bytes = b""
    trace: Mapping[str, Any] = field(default_factory=dict)

    def store(self, report: AnswerReport | DecodeReport | PlanStatus) -> None:
        """Store a report about this step."""
        if isinstance(report, AnswerReport):
            self.text, self.token_ids = report.text, report.token_ids
            self.actions, self.history = tuple(map(format_action, report.actions)), report.history
            self.stamp_s = report.stamp_s
            self.image_width = report.image_width or UPLINK_WIDTH_PX
            self.image_digest = report.image_digest
        elif isinstance(report, DecodeReport):
            self.trace = report.to_mapping()
        else:
            self.executed = report.executed


@dataclass(slots=True)
class MissionLog:
    """The log of a mission; times are seconds of the clock that `on_report` gets."""

    given_s: float = float("nan")
    link: str = "connecting"
    detail: str = ""
    state: str = ""
    reason: str = ""
    first_action_s: float | None = None
    ended_s: float | None = None
    steps: list[MissionStep] = field(default_factory=list)
    times: TimelineRecorder = field(default_factory=TimelineRecorder)
    _progress: MissionProgress | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the mission is over."""
        return self.ended_s is not None

    def begin(self, now_s: float) -> None:
        """Record that the instruction is sent now; messages of older missions are ignored."""
        self.given_s = now_s

    def on_report(self, report: Plan | MissionReport, now_s: float) -> list[str]:
        """Store a report, each once and in order of arrival; return lines of text for the user."""
        if isinstance(report, MissionStatus):
            return self._status(report, now_s)
        if not isinstance(report, (Plan, AnswerReport, DecodeReport, PlanStatus)):
            return []
        if self._progress is None or report.mission != self._progress.mission:
            return []
        if isinstance(report, AnswerReport) and not report.final:
            return []
        if isinstance(report, Plan):
            if report.actions and self.first_action_s is None:
                self.first_action_s = now_s
            return []
        number = report.answer if isinstance(report, PlanStatus) else report.number
        if (step := next((step for step in self.steps if step.number == number), None)) is not None:
            step.store(report)
        if isinstance(report, AnswerReport):
            self.times.answered(number, now_s)
        elif isinstance(report, DecodeReport):
            self.times.sent(number, report.usage.image_bytes)
        else:
            # Also of a search's own turns, which are no answer's.
            self.times.robot(report.state == "moving", now_s)
        return self._progress.on_report(report).splitlines()

    def _status(self, status: MissionStatus, now_s: float) -> list[str]:
        state, why = status.state, ": ".join(p for p in (status.reason, status.detail) if p)
        if not status.mission and state not in END_STATES:
            self.link, self.detail = state, why
            return []
        if not self.given_s <= now_s or self.has_ended:
            return []
        if self._progress is None or self._progress.mission != status.mission:
            # A refused instruction has no mission: its end has an empty name.
            self._progress = MissionProgress(status.mission)
        self.state, self.reason = state, why
        if state == "answering" and status.reason not in NOTES:
            self.steps.append(MissionStep(status.step))
            self.times.look(status.step, now_s)
        if status.reason == LOOK_USED and all(step.number != status.step for step in self.steps):
            # The plan made of a search's answer has a number of its own, which its answer then has, too.
            self.steps.append(MissionStep(status.step))
        if state in END_STATES:
            self.ended_s = now_s
        return self._progress.on_report(status).splitlines()


REACHED_M = 0.7
"""Largest distance to the object's surface at which a go-to mission is a success."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over a mission's answers."""

    tokens: int
    target_passes: int
    drafted: int
    accepted: int
    answer_s: float
    uplink_bytes: int
    downlink_bytes: int
    image_bytes: int

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


def figures(traces: Iterable[Mapping[str, Any]]) -> Figures:
    """Add up traces as `/vlm/trace` has them."""
    found = [trace for trace in traces if trace]

    def total(key: str) -> int:
        return sum(int(trace[key]) for trace in found)

    return Figures(
        tokens=total("tokens"),
        target_passes=total("target_passes"),
        drafted=total("drafted"),
        accepted=total("accepted"),
        answer_s=sum(float(trace["total_s"]) for trace in found),
        uplink_bytes=total("uplink_bytes"),
        downlink_bytes=total("downlink_bytes"),
        image_bytes=total("image_bytes"),
    )


def named_object(instruction: str, scene: Scene) -> str | None:
    """Return the object that is named by colour and kind, or by a kind that is unique in the scene."""
    words = re.sub(r"[^a-z]+", " ", instruction.lower())
    for colour, kind in re.findall(rf"\b(?:({'|'.join(COLOURS)}) )?({'|'.join(KINDS)})\b", words):
        fits = [item.name for item in scene.objects if item.kind == kind and colour in ("", item.colour)]
        if len(fits) == 1:
            return fits[0]
    return None


def object_ahead(scene: Scene) -> str:
    """Return the object nearest to the robot's heading at the start."""
    start = scene.start

    def off_axis_rad(x_m: float, y_m: float) -> float:
        bearing = math.atan2(y_m - start.y_m, x_m - start.x_m) - start.yaw_rad
        return abs(math.atan2(math.sin(bearing), math.cos(bearing)))

    return min(scene.objects, key=lambda item: off_axis_rad(item.x_m, item.y_m)).name


def is_success(log: MissionLog, target: str | None, distance_m: float | None, collisions: int) -> bool:
    """Whether the models ended with `done()`, nothing was touched, and a named object was reached."""
    reached = target is None or (distance_m is not None and distance_m <= REACHED_M)
    return log.state == "done" and collisions == 0 and reached


def same_tokens(steps: Iterable[MissionStep], again: Mapping[int, Mapping[str, Any]]) -> bool | None:
    """Compare answers with those decoded again, by step; None if there was nothing to compare."""
    compared = [
        step.token_ids == tuple(again[step.number]["token_ids"]) for step in steps if step.number in again
    ]
    return all(compared) if compared else None


WIDTH = 100


def table(document: Mapping[str, Any]) -> str:
    """Return the table of a run's document."""
    console = Console(
        width=WIDTH, record=True, file=None, quiet=False, color_system=None, force_terminal=False
    )
    with console.capture() as captured:
        console.print(_mission(document))
        console.print(_decoding(document))
    return captured.get().rstrip()


def _mission(document: Mapping[str, Any]) -> Table:
    out = Table(title=f'"{document["instruction"]}"', title_justify="left", show_header=False)
    out.add_column(style="bold")
    out.add_column()
    distance = document["final_distance_m"]
    rows = {
        "outcome": ("success" if document["success"] else "no success") + f" (mission {document['status']})",
        "object": document["target_object"] or "none that is in this room",
        "distance at the end": "-" if distance is None else f"{distance:.2f} m (reached: at most 0.70 m)",
        "collisions": str(document["collisions"]),
        "answers": str(len(document["answers"])),
        "first action after": _seconds(document["time_to_first_action_s"]),
        "mission took": _seconds(document["total_s"]),
    }
    for name, value in rows.items():
        out.add_row(name, value)
    return out


def _decoding(document: Mapping[str, Any]) -> Table:
    out = Table(title="the same answers, decoded both ways", title_justify="left")
    out.add_column("")
    baseline = document["autoregressive"]
    out.add_column(document["strategy"], justify="right")
    out.add_column("autoregressive", justify="right")
    names = {
        "tokens": "tokens",
        "target_passes": "target passes",
        "answer_s": "time for all answers",
        "uplink_bytes": "bytes up, without images",
        "image_bytes": "bytes up, images",
        "downlink_bytes": "bytes down",
    }
    for key, title in names.items():
        show = _seconds if key == "answer_s" else str
        out.add_row(title, show(document[key]), show(baseline[key]) if baseline else "-")
    out.add_row("tokens per target pass", *(_per_pass(of) for of in (document, baseline)))
    # A tree drafts several tokens for one place, of which one at most can be accepted.
    out.add_row("drafted nodes accepted, branches included", f"{document['acceptance_rate']:.1%}", "-")
    same = document["same_tokens_as_autoregressive"]
    out.add_row("same tokens", "-" if same is None else "yes" if same else "NO", "")
    return out


def _per_pass(figures: Mapping[str, Any] | None) -> str:
    passes = figures["target_passes"] if figures else 0
    return f"{figures['tokens'] / passes:.2f}" if figures and passes else "-"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def answers(steps: Sequence[MissionStep]) -> list[dict[str, Any]]:
    """Return the answers as the document lists them."""
    return [
        {
            "step": step.number,
            "text": step.text,
            "actions": list(step.actions),
            "executed": list(step.executed),
            "tokens": len(step.token_ids),
            "total_s": step.trace.get("total_s"),
        }
        for step in steps
        if step.text
    ]


def sums(figures: Figures) -> dict[str, Any]:
    """Return the sums under the document's names."""
    return {**asdict(figures), "acceptance_rate": round(figures.acceptance_rate, 4)}


STRATEGY = "autoregressive"


def decode_again(
    settings: EdgeSettings, instruction: str, steps: Iterable[MissionStep], frames: Mapping[float, Image]
) -> dict[int, dict[str, Any]]:
    """Return, by step, the figures of `STRATEGY`'s answer under the names of `/vlm/trace`, and `token_ids`.

    A step whose frame was not seen is left out. Raises CloudError or ModelError.
    """
    runtime = bring_up(replace(settings, strategy=STRATEGY))
    try:
        return {
            step.number: _figures(
                _decode(runtime.engine, _observation(step, instruction, frames[step.stamp_s]))
            )
            for step in steps
            if step.stamp_s in frames and step.token_ids
        }
    finally:
        runtime.close()


def _observation(step: MissionStep, instruction: str, image: Image) -> Observation:
    # The node reduces frames in the same way before the upload, so the cloud has this image already.
    sent = for_uplink_again(image.jpeg, step.image_width, step.image_digest)
    return Observation(sent, instruction, step.history, step.stamp_s)


def _decode(engine: Engine, observation: Observation) -> GenerationResult:
    *_, last = engine.answer(observation)
    if last.result is None:
        raise RuntimeError("the answer ended without a result")
    return last.result


def _figures(result: GenerationResult) -> dict[str, Any]:
    return {
        "token_ids": list(result.tokens),
        "tokens": len(result.tokens),
        "target_passes": result.target_passes,
        "drafted": result.drafted,
        "accepted": result.accepted,
        "total_s": result.total_s,
        "uplink_bytes": result.usage.uplink_bytes,
        "downlink_bytes": result.usage.downlink_bytes,
        "image_bytes": result.usage.image_bytes,
    }


WIDTH_PX = 640
LINE_PX = 22
CHARS = 74


def save_frames(
    folder: Path, instruction: str, steps: Iterable[MissionStep], frames: Mapping[float, Image]
) -> list[Path]:
    """Write each step's frame (.jpg) and an annotated copy (.png); return the paths of the copies."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("step_*.*"):
        old.unlink()
    written = []
    for step in steps:
        if step.stamp_s in frames and step.text:
            path = folder / f"step_{step.number:02d}.png"
            path.with_suffix(".jpg").write_bytes(frames[step.stamp_s].jpeg)
            annotate(frames[step.stamp_s], instruction, step).save(path)
            written.append(path)
    return written


def annotate(frame: Image, instruction: str, step: MissionStep) -> PilImage.Image:
    """Return the frame with instruction, answer and actions below it."""
    with PilImage.open(io.BytesIO(frame.jpeg)) as opened:
        height = round(WIDTH_PX * opened.height / opened.width)
        picture = opened.convert("RGB").resize((WIDTH_PX, height))
    done = ", ".join(step.executed) or "nothing"
    lines = [
        *textwrap.wrap(f"step {step.number} · {instruction}", CHARS, max_lines=2),
        *textwrap.wrap(f"answer: {step.text}", CHARS, max_lines=5),
        *textwrap.wrap(f"carried out: {done}", CHARS, max_lines=3),
    ]
    page = PilImage.new("RGB", (WIDTH_PX, height + LINE_PX * len(lines) + 16), "white")
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=16)
    for index, line in enumerate(lines):
        draw.text((10, height + 6 + LINE_PX * index), drawable(line), fill="black", font=font)
    return page


def save_path(scene: Scene, truth: GroundTruth, target: str | None, file: Path) -> None:
    """Write the room from above with the path that the robot took and where it ended."""
    world = World(scene)
    path = [Pose2D(x, y, yaw) for _, x, y, yaw in truth.path]
    _set_pose(world, Pose2D(truth.x_m, truth.y_m, truth.yaw_rad))
    views = WorldViews(world)
    try:
        save_png(views.top_down(world, path, target=target), file)
    finally:
        views.close()


def _set_pose(world: World, pose: Pose2D) -> None:
    try:
        world.teleport(pose)
    except SceneError:
        # The robot touches an object, where no pose can be set; the path still ends there.
        return
