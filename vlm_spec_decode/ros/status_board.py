"""What `vsd top` shows: mission, link, decoding and robot at a glance. Drawn with rich; no ROS calls."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.mission.progress import MissionReport, decoding_line, mission_line, robot_line
from vlm_spec_decode.mission.reports import DecodeReport
from vlm_spec_decode.mission.state import MissionStatus, PartialAnswer
from vlm_spec_decode.ros.operator import Operator

REFRESH_S = 0.1
ONCE_S = 5.0
"""How long `once` waits for all messages; those sent once a second may be late on a busy computer."""
LEVELS = {
    b"\x00": ("OK", "green"),
    b"\x01": ("WARN", "yellow"),
    b"\x02": ("ERROR", "red"),
    b"\x03": ("STALE", "dim"),
}
HAS_ANSWERED = frozenset({"acting", "done", "step_limit"})
"""States of a mission that come after an answer."""

COLOURS = {"done": "green", "moving": "cyan", "idle": "dim", "acting": "cyan", "answering": "magenta"}


@dataclass(slots=True)
class StatusBoard:
    """The newest report of each kind."""

    status: MissionStatus | None = None
    executor: PlanStatus | None = None
    trace: DecodeReport | None = None
    partial: str = ""
    speed_mps: float | None = None
    place_m: tuple[float, float] | None = None
    health: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether any message has arrived."""
        return self.status is not None or self.executor is not None or bool(self.health)

    @property
    def missing(self) -> list[str]:
        """Expected messages that have not arrived yet."""
        missing = {
            "vlm_node (vlm/status)": not self.status,
            "locomotion_node (vlm/plan/status)": not self.executor,
            "diagnostics of vlm_node": not any(name.endswith(": cloud") for name in self.health),
            "diagnostics of locomotion_node": not any(name.endswith(": executor") for name in self.health),
        }
        if self.status is not None and self.status.state in HAS_ANSWERED and not self.trace:
            missing["the last answer (vlm/trace)"] = True
        return [name for name, is_missing in missing.items() if is_missing]

    def on_report(self, report: MissionReport) -> None:
        """Store one report."""
        if isinstance(report, PartialAnswer):
            self.partial = report.text
        elif isinstance(report, MissionStatus):
            self.status = report
        elif isinstance(report, PlanStatus):
            self.executor = report
        elif isinstance(report, DecodeReport):
            self.trace = report

    def read(self, operator: Operator) -> None:
        """Read odometry and diagnostics, which are not text."""
        if operator.odometry is not None:
            twist, at = operator.odometry.twist.twist.linear, operator.odometry.pose.pose.position
            self.speed_mps, self.place_m = (twist.x**2 + twist.y**2) ** 0.5, (at.x, at.y)
        for name, status in operator.diagnostics.items():
            self.health[name] = (LEVELS[bytes(status.level)][0], str(status.message))

    def document(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        trace = self.trace.to_mapping() if self.trace else {}
        return {
            "status": json.loads(self.status.to_json()) if self.status else {},
            "executor": json.loads(self.executor.to_json()) if self.executor else {},
            "trace": {key: value for key, value in trace.items() if key != "rounds"},
            "answer": self.partial,
            "speed_mps": self.speed_mps,
            "place_m": self.place_m,
            "missing": self.missing,
            "diagnostics": {
                name: {"level": level, "message": message} for name, (level, message) in self.health.items()
            },
        }


def view(board: StatusBoard) -> Group:
    """Return the board as rich renderables."""
    return Group(_mission(board), _decoding(board), _health(board))


def show(
    operator: Operator, board: StatusBoard, clock: Clock, seconds: float | None, *, quiet: bool, once: bool
) -> None:
    """Draw until the time is over or an interrupt; `quiet` draws nothing, `once` only at the end."""
    until_s = None if seconds is None else clock.now() + seconds
    console = Console(quiet=quiet)
    try:
        if once or quiet:
            while (until_s is None or clock.now() < until_s) and not (once and not board.missing):
                _read_messages(operator, board)
            console.print(view(board))
            return
        with Live(view(board), console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while until_s is None or clock.now() < until_s:
                _read_messages(operator, board)
                live.update(view(board), refresh=True)
    except KeyboardInterrupt:
        return


def _read_messages(operator: Operator, board: StatusBoard) -> None:
    operator.spin(REFRESH_S)
    board.read(operator)


def _mission(board: StatusBoard) -> Panel:
    status, executor = board.status, board.executor
    table = Table.grid(padding=(0, 2))
    text = mission_line(status) if status else "nothing received yet"
    table.add_row("mission", Text(text, style=COLOURS.get(status.state if status else "", "bold")))
    table.add_row("instruction", Text(status.instruction if status else ""))
    table.add_row("answer", Text(board.partial, style="cyan"))
    doing = robot_line(executor) if executor else ""
    table.add_row("robot", Text(doing, style=COLOURS.get(executor.state if executor else "", "bold")))
    if board.speed_mps is not None and board.place_m is not None:
        x_m, y_m = board.place_m
        table.add_row("odometry", f"{board.speed_mps:.2f} m/s at ({x_m:.2f}, {y_m:.2f}) m")
    return Panel(table, title="vlm_spec_decode", title_align="left")


def _decoding(board: StatusBoard) -> Panel:
    trace, table = board.trace, Table.grid(padding=(0, 2))
    if trace:
        first_s = trace.time_to_first_action_s
        usage = trace.usage
        first = "none" if first_s is None else f"{first_s:.2f} s"
        table.add_row("strategy", f"{trace.strategy} ({trace.rule})")
        table.add_row("answer", decoding_line(trace))
        table.add_row("first action", first)
        table.add_row(
            "bytes",
            f"{usage.uplink_bytes} up, {usage.downlink_bytes} down, image {usage.image_bytes}",
        )
    else:
        table.add_row("no answer yet")
    return Panel(table, title="last answer", title_align="left")


def _health(board: StatusBoard) -> Panel:
    table = Table.grid(padding=(0, 2))
    styles = dict(LEVELS.values())
    for name, (level, message) in sorted(board.health.items()):
        table.add_row(name, Text(level, style=styles[level]), Text(message))
    return Panel(table, title="diagnostics", title_align="left")
