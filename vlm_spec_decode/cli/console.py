"""`vsd say`, `vsd stop` and `vsd top`: a terminal's view of running nodes, on the environment's domain."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import click

from vlm_spec_decode.core import environment_checks, strict_json
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import InstructionError, RobotUnreachable, UsageError

if TYPE_CHECKING:
    from vlm_spec_decode.mission.progress import MissionProgress, MissionReport
    from vlm_spec_decode.mission.queue import MissionRequest
    from vlm_spec_decode.mission.state import Shown
    from vlm_spec_decode.ros.operator import Operator

FIND_S = 10.0
ACK_S = 2.0
"""How long the VLM node may take to acknowledge a request once it is found."""

ASKED_S = 1.0
"""How long `vsd say --reply` looks for the question that it answers."""

LEASE_S = 0.7
"""Silence of `vsd say` after which its mission is cancelled: killed, suspended, its network gone. With the
node's check (0.05 s) and the robot's braking it is at rest within 1.5 s."""

CANCEL_S = 2.0
QUIET_S = 5.0
"""After this time without a line, `vsd say` prints what it waits for."""

SILENT_S = 10.0
"""Silence of the VLM node, which publishes once a second, after which it counts as ended."""

NAMESPACE = click.option(
    "--namespace", default="", help="Namespace of the nodes, such as /go2_a; default: none."
)


@click.command()
@click.argument("text")
@click.option("--approve", is_flag=True, help="Show every plan and ask before the robot moves.")
@click.option("--yes", is_flag=True, help="With --approve: show the plans and say yes to all.")
@click.option("--dry-run", is_flag=True, help="Show the first plan and send nothing to the robot.")
@click.option("--queue", is_flag=True, help="Wait for the mission under way instead of superseding it.")
@click.option("--reply", is_flag=True, help="TEXT is the word on what the robot asks, no new instruction.")
@click.option("--detach", is_flag=True, help="End as soon as the node has taken it; the mission goes on.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=180.0,
    show_default=True,
    help="Seconds until it is cancelled.",
)
@NAMESPACE
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def say(
    text: str,
    approve: bool,
    yes: bool,
    dry_run: bool,
    queue: bool,
    reply: bool,
    detach: bool,
    timeout_s: float,
    namespace: str,
    as_json: bool,
) -> int:
    """Give the running nodes an instruction, show answer and progress until its end.

    Whatever ends this command before its mission does cancels the mission: Ctrl-C, a signal, a closed
    terminal, a kill. With --detach it goes on; `vsd stop` ends it. Where the robot asks something, the next
    line of the terminal is the reply; from anywhere else --reply gives it.
    """
    from vlm_spec_decode.mission.queue import MissionRequest

    if reply:
        if approve or yes or dry_run or queue or detach:
            raise UsageError("--reply goes to the mission that asks, whose options hold")
        with interrupted_by_signals():
            told = give_reply(text, namespace)
        click.echo(json.dumps(told) if as_json else f"{told['mission']} goes on with {text!r}")
        return 0
    if detach and (approve or yes):
        raise UsageError("--detach leaves nobody who could approve a plan")
    lease_s = 0.0 if detach else LEASE_S
    request = MissionRequest(
        instruction=text,
        mission=f"say-{uuid.uuid4().hex[:12]}",
        approve=approve or yes,
        dry_run=dry_run,
        queue=queue,
        lease_s=lease_s,
    )

    def ask(plan: str) -> bool:
        return yes or click.confirm(f"carry out {plan}?", err=True)

    def write(piece: str) -> None:
        click.echo(piece, nl=False, err=as_json)

    with interrupted_by_signals():
        progress = follow(request, namespace, timeout_s, write, ask)
    is_left = detach and not progress.has_ended
    document = {"instruction": text, "mission": request.mission,
                "status": "taken" if is_left else progress.state, "reason": progress.reason,
                "detail": progress.detail, "steps": progress.steps, "actions": progress.actions}  # fmt: skip
    code = 0 if is_left else progress.exit_code
    if as_json:
        click.echo(json.dumps(document | {"exit_code": code}))
    return code


@click.command()
@click.option("--release", is_flag=True, help="Release the latched stop instead.")
@NAMESPACE
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.pass_obj
def stop(is_program: bool | None, release: bool, namespace: str, as_json: bool) -> int:
    """Stop the robot at once and keep it stopped (e-stop), or release it."""
    # Called as a function, by a test say, it must not return twice.
    code = _in_child_process() if is_program else None
    if code is not None:
        return code
    from vlm_spec_decode.ros.estop_client import e_stop

    def answer(done: bool, message: str) -> None:
        click.echo(json.dumps({"ok": done, "message": message}) if as_json else message)
        sys.stdout.flush()

    def write(text: str) -> None:
        click.echo(f"vsd: {text}", err=True)

    return 0 if e_stop(ros_domain(), namespace, not release, FIND_S, write, answer) else 1


CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
TRIES = 3


def _in_child_process() -> int | None:
    """Run the rest of the command in a child process, and in another one if a library crashes there.

    Middleware that ends its process must not prevent the stop. Returns None in the child, and the child's
    exit code in the parent.
    """
    code = 1
    for left in reversed(range(TRIES)):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            return None
        code = _wait_for(pid)
        if -code not in CRASHES:
            break
        again = "trying again" if left else "giving up: use the remote control"
        click.echo(f"vsd: the middleware ended by {signal.Signals(-code).name}; {again}", err=True)
    return 128 - code if code < 0 else code


def _wait_for(pid: int) -> int:
    """Wait for a child and return its exit code; a signal to this process goes to the child as well."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    # Ctrl-C reaches the child by itself, which then reports it.
    old = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        old[number] = signal.signal(number, forward)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@click.command()
@click.option(
    "--seconds", type=float, default=None, help="End by itself after this long; default: at Ctrl-C."
)
@click.option("--once", is_flag=True, help="Print one view as soon as everybody was heard, and end.")
@click.option(
    "--cloud",
    "cloud",
    is_flag=False,
    flag_value="http://127.0.0.1:9464",
    default=None,
    help="Show a cloud's figures instead, at http://127.0.0.1:9464 or another URL of `vsd cloud --http`.",
)
@NAMESPACE
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def top(seconds: float | None, once: bool, cloud: str | None, namespace: str, as_json: bool) -> int:
    """Show mission, link, decoding and robot of the running nodes, until interrupted."""
    if cloud:
        from vlm_spec_decode.cli import cloud_board as top_cloud

        found = top_cloud.show(cloud, WallClock(), seconds, quiet=as_json, once=once)
        if as_json:
            click.echo(json.dumps(found))
        return 0
    from vlm_spec_decode.ros.operator import find_node
    from vlm_spec_decode.ros.status_board import ONCE_S, StatusBoard, show

    board = StatusBoard()
    operator, _ = find_node(ros_domain(), namespace, board.on_report, min(FIND_S, seconds or 2.0))
    try:
        show(operator, board, WallClock(), ONCE_S if once else seconds, quiet=as_json, once=once)
    finally:
        operator.close()
    if once and board.missing:
        click.echo(f"vsd: not heard {operator.where}: {', '.join(board.missing)}", err=True)
    if as_json:
        click.echo(strict_json.dumps(board.document()))
    return 0 if board.is_live else 4


def ros_domain() -> int:
    """Return ROS_DOMAIN_ID. Raises ConfigError if it is no domain."""
    return environment_checks.ros_domain(os.environ)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM, SIGHUP and SIGQUIT end the block as Ctrl-C does: by click's Abort.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. No KeyboardInterrupt leaves the block:
    click would print an empty line for it, which fails on a closed terminal.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    except KeyboardInterrupt:
        raise click.Abort from None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def ignoring_signals() -> Iterator[None]:
    """Ignore signals during the block: it is short, and a robot waits for it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    old = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def follow(
    request: MissionRequest,
    namespace: str,
    timeout_s: float,
    write: Callable[[str], None],
    ask: Callable[[str], bool],
) -> MissionProgress:
    """Send a request and return its progress at the end; ending this call early cancels the mission.

    A request without a lease is not followed once it is accepted. Raises RobotUnreachable if no node is
    found, does not acknowledge it or falls silent; KeyboardInterrupt after an interrupt; OSError if `write`
    does.
    """
    from vlm_spec_decode.mission.progress import MissionProgress
    from vlm_spec_decode.ros.operator import find_node

    progress = MissionProgress(request.mission)
    printer = _ProgressPrinter(progress, write)
    operator, is_found = find_node(ros_domain(), namespace, printer.on_report, FIND_S, printer.note)
    if not is_found:
        where = operator.where
        operator.close()
        raise RobotUnreachable(f"no vlm_node listens {where}")
    is_left = False
    try:
        _submit(operator, request, progress)
        is_left = not request.lease_s
        if is_left:
            printer.note(f"taken as {request.mission}; it goes on by itself, `vsd stop` ends it")
            return progress
        until_s = time.monotonic() + timeout_s
        operator.keep_alive(request.mission, until_s + CANCEL_S)
        _follow_mission(operator, printer, ask, until_s)
        if not progress.has_ended:
            printer.note(
                f"no end within {timeout_s:g} s ({progress.awaited} is what it waits for): cancelling"
            )
        return progress
    finally:
        with ignoring_signals():
            operator.stop_heartbeat()
            if not (progress.has_ended or is_left):
                _cancel_mission(operator, printer)
            operator.close()


class _ProgressPrinter:
    """Prints the progress of a mission; the error of a closed terminal is raised only once."""

    def __init__(self, progress: MissionProgress, write: Callable[[str], None]) -> None:
        self.progress = progress
        self._write = write
        self._is_gone = False
        self.last_s = time.monotonic()
        self.refusal = ""
        """Why the last reply to this mission's question was not taken."""

    def on_report(self, report: MissionReport) -> None:
        """Handle one report, and print its text."""
        from vlm_spec_decode.mission.queue import Ack

        if isinstance(report, Ack) and report.reply and report.mission == self.progress.mission:
            self.refusal = report.detail if report.state == "refused" else ""
        self._print(self.progress.on_report(report))

    def note(self, text: str) -> None:
        """Print a line of this command's own."""
        self._print(self.progress.note(text))

    def _print(self, text: str) -> None:
        if not text or self._is_gone:
            return
        self.last_s = time.monotonic()
        try:
            self._write(text)
        except (OSError, ValueError):
            self._is_gone = True
            raise


def _submit(operator: Operator, request: MissionRequest, progress: MissionProgress) -> None:
    """Send the request until the node acknowledges it. Raises RobotUnreachable after `ACK_S`."""
    from vlm_spec_decode.ros.operator import RESEND_S

    began_s = asked_s = time.monotonic()
    operator.send_request(request)
    while not (progress.is_acknowledged or progress.has_ended):
        now_s = time.monotonic()
        if now_s - began_s > ACK_S:
            raise RobotUnreachable(
                f"vlm_node {operator.where} has not taken the request within {ACK_S:g} s; it was withdrawn"
            )
        if now_s - asked_s > RESEND_S:
            asked_s = now_s
            operator.send_request(request)
        operator.spin(0.01)


def _follow_mission(
    operator: Operator, printer: _ProgressPrinter, ask: Callable[[str], bool], until_s: float
) -> None:
    """Follow the mission to its end or to `until_s`."""
    progress = printer.progress
    began_s = time.monotonic()
    replies = _Replies(operator, printer)
    while not progress.has_ended and (now_s := time.monotonic()) < until_s:
        operator.spin(min(0.05, until_s - now_s))
        if progress.proposed:
            plan, shown, progress.proposed = progress.proposed, progress.shown, ""
            if refused := operator.send_approval(ask(plan), shown, FIND_S):
                printer.note(f"    ! {refused}")
            # Nothing was heard while a person thought.
            operator.received_s = printer.last_s = time.monotonic()
        replies.work()
        if time.monotonic() - operator.received_s > SILENT_S:
            raise RobotUnreachable(
                f"vlm_node {operator.where} has been silent for {SILENT_S:g} s; without it the robot stands"
            )
        if time.monotonic() - printer.last_s > QUIET_S:
            printer.note(f"    … {time.monotonic() - began_s:.0f} s; waiting for {progress.awaited}")


class _Replies:
    """Asks a person in front of a terminal for the word that a mission waits for, while topics are read."""

    def __init__(self, operator: Operator, printer: _ProgressPrinter) -> None:
        self._operator, self._printer = operator, printer
        self._asked: Shown | None = None
        self._word, self._sent_s = "", 0.0
        try:
            fd = sys.stdin.fileno()
            # A job in the background that read its terminal would be suspended.
            self._fd = fd if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp() else -1
        except (AttributeError, OSError, ValueError):
            self._fd = -1

    def work(self) -> None:
        """Say how to reply, read a line if one has been typed, and send it until it is taken or refused."""
        progress, printer = self._printer.progress, self._printer
        if not progress.asked:
            self._asked = None
            return
        if self._asked != progress.shown:
            self._asked, self._word, printer.refusal = progress.shown, "", ""
            printer.note("type the reply and press Enter" if self._fd >= 0 else "reply: vsd say --reply TEXT")
        if printer.refusal and self._word:
            printer.note(f"the reply was not taken: {printer.refusal}")
            self._word = printer.refusal = ""
        if self._fd >= 0:
            printer.last_s = time.monotonic()  # nobody wants to read lines while typing one
            if line := self._line():
                self._word, self._sent_s = line, 0.0
        self._send()

    def _line(self) -> str:
        """Return the line that was typed, "" for none or an empty one; a terminal gives whole lines."""
        if not select.select([self._fd], [], [], 0)[0]:
            return ""
        data = os.read(self._fd, 4096)
        if not data:  # Ctrl-D
            self._fd = -1
        return data.decode(errors="replace").strip()

    def _send(self) -> None:
        from vlm_spec_decode.ros.operator import RESEND_S

        if self._word and self._asked is not None and time.monotonic() - self._sent_s > RESEND_S:
            self._sent_s = time.monotonic()
            try:
                self._operator.send_reply(self._word, self._asked)
            except InstructionError as error:
                self._printer.note(f"that is no reply: {error}")
                self._word = ""


def give_reply(word: str, namespace: str) -> dict[str, str]:
    """Give the operator's word to the mission that has asked; return its name and its question.

    Raises InstructionError if none asks, or none any more; RobotUnreachable if no node is found or answers.
    """
    from vlm_spec_decode.mission.queue import Ack
    from vlm_spec_decode.mission.state import MissionStatus, Shown, shown_by
    from vlm_spec_decode.ros.operator import RESEND_S, find_node

    shown = Shown()
    acks: list[Ack] = []

    def on_report(report: MissionReport) -> None:
        nonlocal shown
        if isinstance(report, MissionStatus) and report.state == "waiting":
            shown = shown_by(report)
        elif isinstance(report, Ack) and report.reply and shown.mission in ("", report.mission):
            acks.append(report)

    operator, is_found = find_node(ros_domain(), namespace, on_report, FIND_S)
    try:
        if not is_found:
            raise RobotUnreachable(f"no vlm_node listens {operator.where}")
        # The status is latched, but that of another mission, such as one that waits, may have replaced it:
        # then the word goes to whoever asks.
        until_s = time.monotonic() + ASKED_S
        while not shown.mission and time.monotonic() < until_s:
            operator.spin(0.01)
        until_s, sent_s = time.monotonic() + ACK_S, 0.0
        while not acks:
            if time.monotonic() > until_s:
                raise RobotUnreachable(f"vlm_node {operator.where} has not answered within {ACK_S:g} s")
            # A word that names no question might answer the next one if it came twice.
            if not sent_s or (shown.mission and time.monotonic() - sent_s > RESEND_S):
                sent_s = time.monotonic() if operator.send_reply(word, shown) else 0.0
            operator.spin(0.01)
    finally:
        operator.close()
    if acks[0].state == "refused":
        raise InstructionError(acks[0].detail)
    return {"mission": acks[0].mission, "question": shown.text, "reply": word, "status": acks[0].state}


def _cancel_mission(operator: Operator, printer: _ProgressPrinter) -> None:
    """Withdraw the mission and wait for its end; if that does not come, cancel it at the executor."""
    progress = printer.progress
    until_s = time.monotonic() + CANCEL_S
    while not progress.has_ended and time.monotonic() < until_s:
        operator.withdraw(progress.mission)
        # A closed terminal must not prevent the cancellation.
        with suppress(OSError, ValueError):
            operator.spin(0.1)
    if not progress.has_ended and progress.steps:
        operator.cancel(CANCEL_S)
