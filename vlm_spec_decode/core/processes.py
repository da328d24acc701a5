"""Several lines of work at the same time: threads by the wall clock, or by a virtual clock in turns.

A process is a function that runs beside its starter, the driver: a thread that is no process. Processes wait
for conditions here and nowhere else. By the wall clock they are threads (`Threads`). In virtual time
(`VirtualProcesses`) they are threads of which one runs at a time, while no time passes; a process ends its
turn by waiting or by a sleep of its clock (`ProcessClock`), and only while the driver waits does time go on:
to the next event or the next process whose time has come. So what would overlap in reality overlaps in
virtual time, and each run is the same.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from vlm_spec_decode.core.clock import VirtualClock

Condition = Callable[[], bool]
"""What somebody waits for. It may act on being true, such as take a lock: one thread at a time asks."""


class Processes(ABC):
    """Starts processes, and lets them and the driver wait for one another."""

    @abstractmethod
    def spawn(self, run: Callable[[], None]) -> None:
        """Start a process; `run` must not raise."""

    @abstractmethod
    def wait(self, is_ready: Condition, timeout_s: float = math.inf) -> bool:
        """Wait until `is_ready()`; return False if it is not within `timeout_s`, or can never be."""

    @abstractmethod
    def change(self, act: Callable[[], None]) -> None:
        """Do what may make a condition true, while nobody asks for one."""


class Threads(Processes):
    """Threads by the wall clock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def spawn(self, run: Callable[[], None]) -> None:
        """Start a thread that does not keep the program alive."""
        threading.Thread(target=run, daemon=True).start()

    def wait(self, is_ready: Condition, timeout_s: float = math.inf) -> bool:
        """Block this thread; conditions are asked again after each `change`."""
        with self._changed:
            return self._changed.wait_for(is_ready, None if timeout_s == math.inf else max(0.0, timeout_s))

    def change(self, act: Callable[[], None]) -> None:
        """Do it under the lock under which conditions are asked."""
        with self._changed:
            act()
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Process:
    """A thread that waits for its turn until `is_ready()`, or until `until_s` of the virtual clock."""

    is_ready: Condition
    until_s: float
    was_ready: bool = True
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class VirtualProcesses(Processes):
    """Processes and events on one virtual clock.

    `event_s` is the time of the event that runs: the clock itself may be ahead, since who is no process
    advances it without a look at the events.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.event_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None], object]] = []
        self._order = itertools.count()
        self._waiting: list[_Process] = []
        self._own = threading.local()
        self._turn_ended = threading.Semaphore(0)
        if isinstance(clock, ProcessClock):
            clock.processes = self

    # Events --------------------------------------------------------------------------------------

    def schedule(self, time_s: float, action: Callable[[], None], owner: object = None) -> None:
        """Let `action` happen at a time; events of one time happen in the order of these calls."""
        heapq.heappush(self._events, (time_s, next(self._order), action, owner))

    def drop(self, owner: object) -> None:
        """Forget the events of this owner."""
        self._events = [event for event in self._events if event[3] is not owner]
        heapq.heapify(self._events)

    def run_due(self) -> None:
        """Let the events happen that the clock has reached."""
        now_s = self.clock.now()
        while self._events and self._events[0][0] <= now_s:
            self.event_s, _, action, _ = heapq.heappop(self._events)
            action()
        self.event_s = now_s

    # Processes -----------------------------------------------------------------------------------

    def spawn(self, run: Callable[[], None]) -> None:
        """Start a process; it gets its first turn when the driver waits.

        Raises TypeError without a `ProcessClock`: a sleep would then hold up all the others.
        """
        if not isinstance(self.clock, ProcessClock):
            raise TypeError("processes in virtual time need a ProcessClock")
        process = _Process(lambda: True, math.inf)
        self._waiting.append(process)

        def live() -> None:
            self._own.process = process
            process.turn.acquire()
            try:
                run()
            finally:
                self._turn_ended.release()

        threading.Thread(target=live, daemon=True).start()

    def wait(self, is_ready: Condition, timeout_s: float = math.inf) -> bool:
        """End this process's turn, or, for the driver, let virtual time pass."""
        process: _Process | None = getattr(self._own, "process", None)
        if process is None:
            return self._drive(is_ready, self.clock.now() + timeout_s)
        if is_ready():
            return True
        process.is_ready, process.until_s = is_ready, self.clock.now() + timeout_s
        self._waiting.append(process)
        self._turn_ended.release()
        process.turn.acquire()
        return process.was_ready

    def change(self, act: Callable[[], None]) -> None:
        """Do it: nobody else runs."""
        act()

    @property
    def is_inside(self) -> bool:
        """Whether the caller is a process."""
        return getattr(self._own, "process", None) is not None

    def _drive(self, is_ready: Condition, until_s: float) -> bool:
        """Give turns and let time pass until `is_ready()` or `until_s`."""
        while True:
            self.run_due()
            if is_ready():
                return True
            if process := self._next():
                process.turn.release()
                self._turn_ended.acquire()
                continue
            event_s = self._events[0][0] if self._events else math.inf
            wake_s = min((process.until_s for process in self._waiting), default=math.inf)
            next_s, now_s = min(event_s, wake_s), self.clock.now_s
            if next_s > until_s or next_s == math.inf:
                self.clock.now_s += max(0.0, until_s - now_s) if until_s < math.inf else 0.0
                return False
            self.clock.now_s = max(now_s, wake_s) if wake_s <= event_s else now_s + max(0.0, event_s - now_s)

    def _next(self) -> _Process | None:
        """Return the process whose turn it is: that which has waited longest of those that can go on."""
        for process in self._waiting:
            process.was_ready = process.is_ready()
            if process.was_ready or process.until_s <= self.clock.now_s:
                self._waiting.remove(process)
                return process
        return None


@dataclass(slots=True)
class ProcessClock(VirtualClock):
    """A virtual clock on which the sleep of a process lets the others go on; it belongs to `processes`."""

    processes: VirtualProcesses | None = None

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` pass: for a process by ending its turn, for the driver at once."""
        if self.processes is not None and self.processes.is_inside:
            self.processes.wait(lambda: False, max(0.0, duration_s))
        else:
            self.now_s += max(0.0, duration_s)
