"""What a page may ask of a robot, who may ask it and how often, and the dead man's switch of the drive pad.

`ConsoleRobot` is the port: `vsd console` and the ROS node each have one. A page commands through
`CommandDesk`, which checks, limits, carries out and logs. Stops are never limited, and wait for nothing.
"""

from __future__ import annotations

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from vlm_spec_decode.control.motion_profile import Velocity
from vlm_spec_decode.core.errors import RobotError, UsageError, VsdError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.mission.state import Shown
from vlm_spec_decode.serve.access import RateLimit
from vlm_spec_decode.serve.console.state import ConsoleState
from vlm_spec_decode.serve.console.video import VideoFeed

log = logging.getLogger(__name__)

SILENCE_S = 0.25
"""Silence of a page that drives after which the robot is stopped. Pages send every 50 ms."""

CHECK_S = 0.025
"""How often the silence is looked at."""

STOP_AGAIN_S, MAX_STOPS = 0.2, 40
"""Stops that are asked for within this time of one another are one; a page sends a second one after 0.25 s.
So many may hang at once: five a second, as long as a ROS service is waited for."""

HANGS_S = 0.9
"""A stop that takes longer hangs, and another message of its press is a stop of its own. A walking robot
stands after 0.3 s; a page's request waits 1 s for its reply before it is sent again."""

MAX_PRESSES = 256
"""Presses of stop buttons that are remembered, so that the second message of one is known as such."""

COMMANDS_PER_S, COMMAND_BURST = 5.0, 20
"""Commands that one page may send, beside stops and the drive pad."""


class ConsoleRobot(ABC):
    """One robot as the console commands it. Methods are called from several threads at once.

    All but `stop`, `drive` and `end_drive` may wait, and raise VsdError if they cannot do what is asked.
    """

    state: ConsoleState
    """What is shown of it."""

    video: VideoFeed
    """Its camera; who has one looks at `viewers` and puts pictures."""

    @abstractmethod
    def instruct(self, instruction: str, *, approve: bool, queue: bool) -> None:
        """Begin a mission; with `queue` after those under way, else in their place."""

    @abstractmethod
    def withdraw(self, mission: str) -> None:
        """End a mission, whether it waits or is under way; the robot stands then."""

    @abstractmethod
    def approve(self, yes: bool, shown: Shown) -> None:
        """Approve or reject the plan that a page has shown, and no other one."""

    @abstractmethod
    def reply(self, word: str, shown: Shown) -> None:
        """Give the operator's word on the question that a page has shown; the mission goes on with it."""

    @abstractmethod
    def stop(self) -> str:
        """Stop the robot now and keep it stopped (e-stop); return what became of it, in words."""

    @abstractmethod
    def release(self) -> None:
        """Release the e-stop; nothing moves by that."""

    @abstractmethod
    def drive(self, velocity: Velocity) -> None:
        """Let a person steer: forward and left in m/s, left in rad/s. Never waits."""

    @abstractmethod
    def end_drive(self) -> None:
        """The person steers no more: the robot stops at once. Never waits."""


@dataclass(frozen=True, slots=True)
class Page:
    """One open page: its number, who it is for the log, and whether it may command."""

    number: int
    who: str
    may_command: bool


class DeadMansSwitch:
    """Which page drives, and its last sign of life. The robot is stopped when it falls silent or is lost.

    One page drives at a time. A page that fell silent lets go before it drives again: what a stalled network
    delivers late must not start the robot. A thread of its own watches the silence, so that nothing else
    which this process does can delay that.
    """

    def __init__(self, robot: ConsoleRobot, clock: Clock, on_end: Callable[[Page, str], None]) -> None:
        self._robot, self._clock, self._on_end = robot, clock, on_end
        self._lock = threading.Lock()
        self._driver: Page | None = None
        self._silent: set[int] = set()
        self._heard_s = 0.0
        self._driving, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dead man's switch", daemon=True)
        self._thread.start()

    @property
    def driver(self) -> Page | None:
        """The page that drives."""
        return self._driver

    def drive(self, page: Page, velocity: Velocity) -> bool:
        """Pass a velocity on; False while another page drives. Raises UsageError after a silence."""
        with self._lock:
            if self._closing.is_set() or page.number in self._silent:
                raise UsageError("the drive was ended: let the pad go first")
            if self._driver is not None and self._driver.number != page.number:
                return False
            self._driver, self._heard_s = page, self._clock.now()
            self._driving.set()
            self._robot.drive(velocity)
            return True

    def end(self, page: Page, why: str) -> None:
        """Stop the robot if this page drives it; the page has let go."""
        with self._lock:
            self._silent.discard(page.number)
            if self._driver is None or self._driver.number != page.number:
                return
            self._let_go()
        self._on_end(page, why)

    def _let_go(self) -> None:
        self._robot.end_drive()
        self._driver = None  # only now: where that failed, the thread tries again
        self._driving.clear()

    def _end_silence(self) -> None:
        """Stop the robot if the page that drives it is silent."""
        with self._lock:
            driver = self._driver
            if driver is None or self._clock.now() - self._heard_s <= SILENCE_S - CHECK_S:
                return
            self._silent.add(driver.number)
            self._let_go()
        self._on_end(driver, "the page fell silent")

    def close(self) -> None:
        """End the thread, and the drive. Idempotent."""
        self._closing.set()  # first: from now on no drive begins
        if (driver := self._driver) is not None:
            self.end(driver, "the console ends")
        self._driving.set()
        self._thread.join(1.0)

    def _watch(self) -> None:
        while not self._closing.is_set():
            self._driving.wait()
            try:
                self._end_silence()
            except Exception:  # whatever it is, this thread must go on watching
                log.exception("dead man's switch")
            self._closing.wait(CHECK_S)


class CommandDesk:
    """Carries out the commands of all pages of one robot."""

    def __init__(self, robot: ConsoleRobot, clock: Clock) -> None:
        self.robot = robot
        self._clock = clock
        self._limits: dict[int, RateLimit] = {}
        self.switch = DeadMansSwitch(robot, clock, self._on_drive_end)
        self._stops = ThreadPoolExecutor(MAX_STOPS, thread_name_prefix="console stop")
        self._stopping: Future[str] | None = None
        self._stopping_s = -math.inf
        self._presses: dict[str, tuple[Future[str], float]] = {}
        self._ends = ThreadPoolExecutor(2, thread_name_prefix="console end")  # waits for no other command
        self._others = ThreadPoolExecutor(2, thread_name_prefix="console command")

    def close(self) -> None:
        """Stop what a page drives, and end the threads. Idempotent."""
        self.switch.close()
        self._stops.shutdown(wait=False)
        self._ends.shutdown(wait=False)
        self._others.shutdown(wait=False)

    def leave(self, page: Page) -> None:
        """Note that a page is gone: what it drives stops at once."""
        self.switch.end(page, "the page is gone")
        self._limits.pop(page.number, None)

    def drive(self, page: Page, message: Mapping[str, Any]) -> None:
        """Carry out one message of the drive pad: shares of the limits from -1 to 1, or its end.

        Raises UsageError.
        """
        if not page.may_command:
            raise UsageError("this page may look, and stop, but not drive")
        if message.get("end"):
            self.switch.end(page, "the pad was let go")
            return
        shares = [_share(message.get(key)) for key in ("x", "y", "turn")]
        limits = self.robot.state.facts.limits
        forward, left, turn = shares
        # The bound holds for the length of the velocity, not for each of its parts.
        longer = max(1.0, math.hypot(forward, left))
        speed = limits.max_speed_mps / longer
        begins = self.switch.driver is None
        if not self.switch.drive(page, (forward * speed, left * speed, turn * limits.max_turn_radps)):
            raise UsageError("another page drives the robot")
        if begins:
            self._note(page, "drive", "begins")

    def stop(self, page: Page, press: str = "") -> Future[str]:
        """Stop the robot now; a stop that has just begun counts for everyone who asks meanwhile.

        One that hangs does not: its reply may be lost, and the robot may have been released since. `press`
        names one press of a button, of which a page may send several messages: one that comes after the press
        has stopped the robot changes nothing, since somebody may have released it in between. A press that
        failed or hangs is carried out again.
        """
        now_s = self._clock.now()
        earlier, begun_s = self._presses.get(press, (None, 0.0))
        if earlier is not None:
            has_stopped = earlier.done() and earlier.exception() is None
            if has_stopped or (not earlier.done() and now_s - begun_s < HANGS_S):
                return earlier
        stopping = self._stopping
        if stopping is None or stopping.done() or now_s - self._stopping_s > STOP_AGAIN_S:
            stopping = self._stopping = self._stops.submit(self._stop, page)
            self._stopping_s = now_s
        if press:
            self._presses.pop(press, None)
            self._presses[press] = stopping, self._stopping_s
            if len(self._presses) > MAX_PRESSES:
                del self._presses[next(iter(self._presses))]
        return stopping

    def command(self, page: Page, message: Mapping[str, Any]) -> Future[str]:
        """Begin a command; the result is what became of it. Raises UsageError for what may not be done."""
        name = message.get("command")
        if name == "stop":
            return self.stop(page, press_of(message.get("press")))
        work = self._work(str(name), message)
        if not page.may_command:
            self._note(page, str(name), "refused: this page may only look", done=False)
            raise UsageError("this page may look, and stop, but not command")
        self.charge(page)
        if name == "release":
            self._stopping = None  # a stop that is asked for after this one is another one
        threads = self._ends if name == "withdraw" else self._others
        return threads.submit(self._run, page, str(name), _told(message), work)

    def charge(self, page: Page) -> None:
        """Count one command, or another request that costs something, of a page. Raises UsageError."""
        if page.number not in self._limits:
            self._limits[page.number] = RateLimit(COMMANDS_PER_S, COMMAND_BURST, self._clock.now)
        if wait_s := self._limits[page.number].take():
            raise UsageError(f"too many commands; the next one in {wait_s:.1f} s")

    def _work(self, name: str, message: Mapping[str, Any]) -> Callable[[], None]:
        """Return what carries a command out. Raises UsageError, InstructionError among it."""
        robot = self.robot
        if name == "instruct":
            text = message.get("instruction")
            if not isinstance(text, str):
                raise UsageError("instruction: a text is wanted")
            instruction = check_instruction(text)
            approve, queue = bool(message.get("approve")), bool(message.get("queue"))
            return lambda: robot.instruct(instruction, approve=approve, queue=queue)
        if name == "withdraw":
            mission = message.get("mission")
            if not isinstance(mission, str):
                raise UsageError("mission: a name is wanted")
            return lambda: robot.withdraw(mission)
        if name in ("approve", "reject"):
            plan = _shown(message)
            return lambda: robot.approve(name == "approve", plan)
        if name == "reply":
            word = message.get("word")
            if not isinstance(word, str):
                raise UsageError("word: a text is wanted")
            told, question = check_instruction(word), _shown(message)
            return lambda: robot.reply(told, question)
        if name != "release":
            raise UsageError(f"no such command: {name[:40]!r}")
        return robot.release

    def _run(self, page: Page, name: str, told: str, work: Callable[[], None]) -> str:
        try:
            work()
        except VsdError as error:
            self._note(page, name, f"{told}: {error}".strip(": "), done=False)
            raise
        self._note(page, name, told)
        return told

    def _stop(self, page: Page) -> str:
        try:
            found = self.robot.stop()
        except VsdError as error:
            self._note(page, "stop", str(error), done=False)
            raise
        self._note(page, "stop", found)
        return found

    def _on_drive_end(self, page: Page, why: str) -> None:
        self._note(page, "drive", f"ends: {why}")

    def _note(self, page: Page, command: str, detail: str, *, done: bool = True) -> None:
        log.info("%s: %s %s%s", page.who, command, detail, "" if done else " (not done)")
        self.robot.state.on_command(command, page.who, detail, done=done)
        if command == "drive":
            driver = self.switch.driver
            self.robot.state.on_driver("" if driver is None else driver.who)


def press_of(given: object) -> str:
    """Return what a page calls a press of its stop button, "" if it says nothing of use. Never raises."""
    return given if isinstance(given, str) and len(given) <= 64 else ""


def stop_all(desks: Iterable[CommandDesk], page: Page, press: str = "") -> Future[str]:
    """Stop all robots now; none waits for another. The result says of each what became of it.

    Its exception is a RobotError that says the same, if the stop of any of them has failed.
    """
    stops = {desk.robot.state.facts.name: desk.stop(page, press) for desk in desks}
    found: Future[str] = Future()
    waiting, lock = set(stops), threading.Lock()

    def end(name: str, _stop: Future[str]) -> None:
        with lock:
            waiting.discard(name)
            if waiting:
                return
        told = "; ".join(f"{each}: {stop.exception() or stop.result()}" for each, stop in stops.items())
        if any(stop.exception() for stop in stops.values()):
            found.set_exception(RobotError(told))
        else:
            found.set_result(told)

    for name, stop in stops.items():
        stop.add_done_callback(partial(end, name))
    return found


def _shown(message: Mapping[str, Any]) -> Shown:
    """Return what a page replies to: the mission and step that it shows, and the plan's text.

    Raises UsageError: a page must name it, since another one may wait by the time its command arrives.
    """
    mission, step, text = message.get("mission"), message.get("step"), message.get("plan", "")
    if isinstance(mission, str) and type(step) is int and isinstance(text, str) and mission and step > 0:
        return Shown(mission, step, text)
    raise UsageError("mission and step: those of the plan or the question that the page shows are wanted")


def _told(message: Mapping[str, Any]) -> str:
    """Return what a command is about, for the log."""
    if message.get("command") == "instruct":
        marks = [mark for mark in ("approve", "queue") if message.get(mark)]
        return " ".join([repr(str(message["instruction"]).strip()[:200]), *marks])
    if message.get("command") == "reply":
        return repr(str(message["word"]).strip()[:200])
    about = (message.get("mission", ""), message.get("plan", ""))
    return " ".join(str(each)[:80] for each in about if each)


def _share(value: object) -> float:
    """Return a share of a limit. Raises UsageError for what is no number from -1 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError("drive: x, y and turn are numbers from -1 to 1")
    return max(-1.0, min(1.0, float(value)))
