"""`vsd edge`: missions on a robot without ROS, from the command line or line by line from standard input."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from vlm_spec_decode.cli.console import interrupted_by_signals
from vlm_spec_decode.core.config import Setting, settings_of
from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.options import FILE, FOLDER, Function, as_json, options, setting_option
from vlm_spec_decode.core.profiles import hardware_names, load_hardware
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission.state import RunnerConfig
from vlm_spec_decode.robot.registry import ROBOTS, robot_kind

if TYPE_CHECKING:
    from vlm_spec_decode.mission.connection import EdgeEngineSource
    from vlm_spec_decode.mission.mission import Mission, MissionEvent
    from vlm_spec_decode.mission.progress import MissionProgress, MissionReport
    from vlm_spec_decode.mission.robot import Robot
    from vlm_spec_decode.mission.service import MissionSettings

ROBOT = Setting("robot", "go2", "Which robot.", one_of=ROBOTS)

PROFILE = Setting(
    "profile",
    "",
    "Hardware profile, a name or a YAML file, that says how long draft steps take.",
    one_of=hardware_names,
)

LINK_SILENCE_S = 0.6
"""Silence of the link that loses the cloud."""

REPLY_S = 115.0
"""How long the robot's question may wait for a line, a little less than the mission waits for it."""

RUNNER_NAMES = ("fallback", "start", "max_steps", "search", "search_looks", "replan", "early_frames")
"""Settings of a mission that are options."""

STOP_KEYS = frozenset(b" \r\n")


def robot_options(function: Function) -> Function:
    """Add the options of whatever runs missions on a robot in this process."""
    for decorate in reversed(
        (
            setting_option(ROBOT),
            click.option(
                "--interface", default=None, help="Network interface towards the robot; default: its own."
            ),
            click.option(
                "--domain",
                type=click.IntRange(0, MAX_DOMAIN),
                default=None,
                help="DDS domain of the robot; default: its own.",
            ),
            click.option(
                "--set", "pairs", multiple=True, metavar="NAME=VALUE", help="A setting of the robot's own."
            ),
            click.option("--limits", type=FILE, default=None, help="YAML of the safety gate's limits."),
            options(EdgeSettings, "cloud", "cloud_choice", "keys", "draft", "strategy", keys=FOLDER),
            options(EdgeSettings, "draft_budget", "draft_floor", "deadline_s", "image_budget_s"),
            setting_option(PROFILE),
            options(RunnerConfig, *RUNNER_NAMES),
        )
    ):
        function = decorate(function)
    return function


def start_timeout(function: Function) -> Function:
    """Add how long a silent robot is looked for."""
    kind = click.FloatRange(0, 600, min_open=True)
    told = "Seconds that a silent robot is looked for."
    names = ("--start-timeout", "start_s")
    return click.option(*names, type=kind, default=30.0, show_default=True, help=told)(function)


@click.command()
@click.option(
    "--instruction", "instructions", multiple=True, help="What to do; may be repeated. Default: from stdin."
)
@robot_options
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=180.0,
              show_default=True, help="Seconds until a mission is cancelled.")  # fmt: skip
@click.option("--approve", is_flag=True, help="Show every plan and ask before the robot moves.")
@start_timeout
@as_json
def edge(as_json: bool, **given: Any) -> int:
    """Carry out instructions on a robot, without ROS: draft here, target in the cloud.

    Space or Enter stops the robot and ends the mission; Ctrl-C and SIGTERM also end the command. From a pipe,
    an empty line stops; other lines are instructions, one after the other. Where the robot asks something,
    the next line is the reply.
    """
    given["settings"] = robot_settings(given.pop("pairs"))

    def write(text: str) -> None:
        click.echo(text, nl=False, err=as_json)

    with interrupted_by_signals():
        ended = run(EdgeOptions(**given), write)
    code = next((one["exit_code"] for one in ended if one["exit_code"]), 0)
    if as_json:
        click.echo(json.dumps({"missions": ended, "exit_code": code}))
    return int(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOptions:
    """The options of `vsd edge`. `settings` are the robot's own, by name."""

    instructions: tuple[str, ...]
    robot: str
    interface: str | None
    domain: int | None
    settings: Mapping[str, str]
    limits: Path | None
    cloud: str
    cloud_choice: str
    keys: Path | None
    draft: str
    strategy: str
    draft_budget: str
    draft_floor: float
    deadline_s: float
    image_budget_s: float
    profile: str
    fallback: str
    search: str
    search_looks: int
    replan: str
    start: str
    max_steps: int
    early_frames: str
    timeout_s: float
    approve: bool
    start_s: float


def robot_settings(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return `NAME=VALUE` options as a mapping. Raises ConfigError."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise ConfigError(f"--set {pair!r}: NAME=VALUE is wanted, such as state_codes='2077 walk'")
        found[name] = value
    return found


def run(options: EdgeOptions, write: Callable[[str], None]) -> list[dict[str, Any]]:
    """Carry out the instructions; return how each ended. All settings are checked before anything moves.

    Raises ConfigError, InstructionError, CloudUnreachable, RobotError.
    """
    from vlm_spec_decode.edge.mission_loop import check_instruction

    for instruction in options.instructions:
        check_instruction(instruction)
    with connected(options, write) as (robot, make_source):
        from vlm_spec_decode.mission.mission import Mission

        source = make_source()
        ask = (lambda plan: click.confirm(f"carry out {plan}?", err=True)) if options.approve else None
        terminal = _Terminal()
        mission = Mission(
            None,
            robot,
            source=source,
            approve=ask,
            reply=terminal.reply,
            settings=mission_settings(options),
        )
        write("the robot stands ready\n")
        return _missions(mission, terminal, options, write)


@contextmanager
def connected(
    options: EdgeOptions, write: Callable[[str], None]
) -> Iterator[tuple[Robot, Callable[..., EdgeEngineSource]]]:
    """Check all settings, look for cloud and robot; yield the robot, which stands, and what makes engines.

    That takes the arguments of `EdgeEngineSource` that follow the settings. Raises ConfigError,
    CloudUnreachable, RobotError.
    """
    from vlm_spec_decode.actions.limits import SafetyLimits
    from vlm_spec_decode.core.clock import WallClock
    from vlm_spec_decode.core.config import read_mapping
    from vlm_spec_decode.edge.factory import check_settings
    from vlm_spec_decode.transport.address import wait_for_listener

    kind, settings = robot_kind(options.robot), _edge_settings(options)
    read = read_mapping(options.limits) if options.limits else {}
    limits = kind.spec.narrowed(SafetyLimits.from_mapping(read))
    check_settings(settings)
    if settings.cloud:
        wait_for_listener(settings.cloud, settings.refused_s, WallClock())
    # Only now: these load the models' libraries, and with a robot the SDK.
    from vlm_spec_decode.mission.connection import EdgeEngineSource
    from vlm_spec_decode.mission.robot import Robot

    write(f"looking for {kind.spec.title}\n")
    with Robot.connect(
        options.robot,
        interface=options.interface,
        domain=options.domain,
        limits=limits,
        start_timeout_s=options.start_s,
        **options.settings,
    ) as robot:
        yield robot, partial(EdgeEngineSource, settings)


def _edge_settings(options: EdgeOptions) -> EdgeSettings:
    from vlm_spec_decode.edge.protocol_timing import ProtocolTiming

    return EdgeSettings(
        cloud=options.cloud,
        cloud_choice=options.cloud_choice,
        keys=options.keys,
        draft=options.draft,
        strategy=options.strategy,
        draft_budget=options.draft_budget,
        draft_floor=options.draft_floor,
        deadline_s=options.deadline_s,
        image_budget_s=options.image_budget_s,
        hardware=load_hardware(options.profile) if options.profile else None,
        timing=ProtocolTiming.walking(LINK_SILENCE_S, settings_of(EdgeSettings)["connect_timeout_s"].default),
    )


def mission_settings(options: EdgeOptions) -> MissionSettings:
    """Return the settings of every mission."""
    from vlm_spec_decode.mission.service import MissionSettings
    from vlm_spec_decode.mission.state import RunnerConfig

    chosen: dict[str, Any] = {name: getattr(options, name) for name in RUNNER_NAMES}
    return MissionSettings(runner=RunnerConfig(**chosen), approve=options.approve)


def _missions(
    mission: Mission, terminal: _Terminal, options: EdgeOptions, write: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run every instruction; with `--instruction`, stop at the first one that is not done."""
    terminal.start(mission)
    ended = []
    for instruction in options.instructions or terminal.lines():
        with terminal.stop_keys(unless=options.approve):
            ended.append(_mission(mission, instruction, options.timeout_s, write))
        if options.instructions and ended[-1]["exit_code"]:
            break
    return ended


def _mission(
    mission: Mission, instruction: str, timeout_s: float, write: Callable[[str], None]
) -> dict[str, Any]:
    """Run one instruction and print its events as `vsd say` does; return its result."""
    printer = _EventPrinter(write)
    result = mission.run(instruction, printer.show, timeout_s=timeout_s)
    return {
        "instruction": instruction,
        "status": result.status,
        "reason": result.reason,
        "detail": result.detail,
        "steps": result.steps,
        "actions": list(result.actions),
        "exit_code": printer.exit_code,
    }


class _EventPrinter:
    """Prints the events of one mission, in the words of `MissionProgress`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._progress: MissionProgress | None = None

    @property
    def exit_code(self) -> int:
        """What the command returns for this mission."""
        return 1 if self._progress is None else self._progress.exit_code

    def show(self, event: MissionEvent) -> None:
        """Print the text of an event, if it has one."""
        from vlm_spec_decode.mission.progress import MissionProgress
        from vlm_spec_decode.mission.state import Answer, MissionStatus, PartialAnswer

        report = event.report
        if isinstance(report, MissionStatus) and not report.mission:
            if report.state == "unavailable":
                self._write(f"the cloud: {event.text}\n")
            return
        if isinstance(report, Answer):
            self._print_report(report.report())
            self._print_report(report.trace())
            return
        if not isinstance(report, PartialAnswer):
            self._progress = self._progress or MissionProgress(report.mission)
        self._print_report(report)

    def _print_report(self, report: MissionReport) -> None:
        if self._progress is not None and (printed := self._progress.on_report(report)):
            self._write(printed)


class _Terminal:
    """Standard input: instructions between missions, and stops during one.

    In a terminal a single key is enough for a stop: the terminal is read key by key while a mission runs.
    """

    def __init__(self) -> None:
        self._mission: Mission | None = None
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._is_running = False
        self._line_mode: list[Any] | None = None
        try:
            self._fd = sys.stdin.fileno()
            self._is_tty = os.isatty(self._fd)
        except (AttributeError, OSError, ValueError):
            self._fd, self._is_tty = -1, False
        self._thread = threading.Thread(target=self._read, name="stdin", daemon=True)

    def start(self, mission: Mission) -> None:
        """Start to read, unless stdin is closed, or reading would suspend a background job."""
        self._mission = mission
        if self._fd < 0 or (self._is_tty and os.tcgetpgrp(self._fd) != os.getpgrp()):
            self._lines.put(None)
            return
        self._thread.start()

    def lines(self) -> Iterator[str]:
        """Yield instructions until the end of the input."""
        while (line := self._lines.get()) is not None:
            yield line

    def reply(self, question: str) -> str:
        """Return the next line, the operator's word on what the robot asks; "" without one."""
        click.echo(f"{question} ", nl=False, err=True)
        running, self._is_running = self._is_running, False
        with self._reading_lines():
            try:
                line = self._lines.get(timeout=REPLY_S)
            except Empty:
                line = ""
        self._is_running = running
        if line is None:
            self._lines.put(None)
        return line or ""

    @contextmanager
    def _reading_lines(self) -> Iterator[None]:
        """Read whole lines from a terminal in this block, though a mission runs."""
        if self._line_mode is None:
            yield
            return
        import termios
        import tty

        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._line_mode)
        try:
            yield
        finally:
            tty.setcbreak(self._fd)

    @contextmanager
    def stop_keys(self, *, unless: bool) -> Iterator[None]:
        """Let a key stop the robot in this block, `unless` plans are approved, which reads lines, too."""
        if not self._is_tty or unless:
            self._is_running = not unless
            try:
                yield
            finally:
                self._is_running = False
            return
        import termios
        import tty

        before = self._line_mode = termios.tcgetattr(self._fd)
        try:
            tty.setcbreak(self._fd)
            self._is_running = True
            yield
        finally:
            self._is_running, self._line_mode = False, None
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def _read(self) -> None:
        pending = b""
        while data := os.read(self._fd, 4096):
            if self._is_running and self._is_tty:
                if STOP_KEYS & set(data):
                    self._stop()
                continue
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._on_line(line.decode(errors="replace").strip())
        if pending.strip():
            self._on_line(pending.decode(errors="replace").strip())
        self._lines.put(None)

    def _on_line(self, line: str) -> None:
        if line:
            self._lines.put(line)
        elif self._is_running:
            self._stop()

    def _stop(self) -> None:
        if self._mission is not None:
            self._mission.stop("stopped by the operator")
