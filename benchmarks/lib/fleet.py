"""Many robots and one cloud in virtual time: the real server protocol and models, with a profile's durations.

Every message is encoded, delayed as by a link and decoded again; the target's tokens are real. So the
figures are those of the service itself, without the noise of this machine. Robots use the edge's protocol
with a plain driver: they draft γ tokens, send, wait and repeat, or without a drafter only receive.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.requests import BatchResult, Jobs
from vlm_spec_decode.cloud.server import BatchRunner
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import Target
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.transport.emulation import EmulatedDirection, emulated_directions

from .robots import VirtualRobot

TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Time of a batch: 32 answers take five times as long as 1 (FSD, 2505.21594, Table 9), else linear.

    `hardware` gives the time of one answer's pass alone.
    """

    hardware: HardwareProfile
    at: int = 32
    factor: float = 5.0

    def factor_of(self, answers: int) -> float:
        """Return the time of a pass with this many answers over that with one."""
        return 1 + (self.factor - 1) * (answers - 1) / (self.at - 1)

    def gain(self, robots: int) -> float:
        """Return the throughput of this many robots in one pass over one by one."""
        return robots / self.factor_of(robots)

    def pass_s(self, jobs: Jobs) -> float:
        """Return the time of one pass over these jobs: that of the longest, times the factor of the batch."""
        alone = [
            self.hardware.pass_s(len(job.plan.nodes.tokens) if job.plan else 0, not job.request.is_cached)
            for job in jobs
        ]
        return max(alone) * self.factor_of(len(jobs))


@dataclass(slots=True)
class Fleet:
    """Runs robots against one server protocol. `run` ends when every robot has its last answer."""

    target: Target
    robots: list[VirtualRobot]
    cost: BatchCost
    link: LinkProfile
    grammar_digest: str = "grammar"
    limits: ServerLimits = field(default_factory=ServerLimits)
    clock: VirtualClock = field(default_factory=VirtualClock)
    busy_s: float = 0.0
    protocol: ServerProtocol = field(init=False)
    _runner: BatchRunner = field(init=False)
    _links: dict[bytes, tuple[EmulatedDirection, EmulatedDirection]] = field(default_factory=dict)
    _by_name: dict[bytes, VirtualRobot] = field(default_factory=dict)
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _is_running: bool = False
    _expire_s: float = 0.0

    def __post_init__(self) -> None:
        self.protocol = ServerProtocol(self.target.card, self.grammar_digest, self.limits)
        self._runner = BatchRunner(self.target, None, self.clock, lambda *_: None)
        for index, robot in enumerate(self.robots):
            self._links[robot.name] = emulated_directions(self.link, index)
            self._by_name[robot.name] = robot

    def run(
        self, until_s: float = math.inf, seed: int = 0, spread_s: float = 0.0, answers: float = math.inf
    ) -> float:
        """Start the robots within `spread_s` of one another and `run_on`."""
        starts_s = np.random.default_rng(seed).uniform(0, spread_s, len(self.robots))
        for robot, start_s in zip(self.robots, starts_s, strict=True):
            self._schedule(float(start_s), partial(self._start, robot))
        return self.run_on(until_s, answers)

    @property
    def answered(self) -> int:
        """Answers that have ended."""
        return sum(len(robot.ended_answers) for robot in self.robots)

    def run_on(self, until_s: float = math.inf, answers: float = math.inf) -> float:
        """Run until all is answered, `answers` have ended or it is `until_s`; return the time."""
        answers = min(answers, sum(len(robot.questions) for robot in self.robots))
        while self._queue and self._queue[0][0] <= until_s and self.answered < answers:
            now_s, _, action = heapq.heappop(self._queue)
            self.clock.sleep(now_s - self.clock.now())
            action()
            self._run_server()
            if now_s > self._expire_s:
                self.protocol.expire(now_s)
                self._expire_s = now_s + 1.0
        return self.clock.now()

    def _start(self, robot: VirtualRobot) -> None:
        robot.start(self.clock.now())
        self._flush(robot)
        self._schedule(self.clock.now() + TICK_S, partial(self._tick, robot))

    def _tick(self, robot: VirtualRobot) -> None:
        if not robot.is_done:
            robot.tick(self.clock.now())
            self._flush(robot)
            self._schedule(self.clock.now() + TICK_S, partial(self._tick, robot))

    def _flush(self, robot: VirtualRobot) -> None:
        """Send a robot's messages, and schedule its next step."""
        up, _ = self._links[robot.name]
        for data in robot.outgoing():
            arrival_s = up.arrival(len(data), self.clock.now())
            self._schedule(arrival_s, partial(self._arrive, robot.name, data))
        if robot.wake_s is not None:
            wake_s, robot.wake_s = robot.wake_s, None
            self._schedule(wake_s, partial(self._wake, robot))

    def _arrive(self, name: bytes, data: bytes) -> None:
        self.protocol.receive(name, data, self.clock.now())

    def _wake(self, robot: VirtualRobot) -> None:
        robot.wake(self.clock.now())
        self._flush(robot)

    def _deliver(self, robot: VirtualRobot, data: bytes) -> None:
        robot.receive(data, self.clock.now())
        self._flush(robot)

    def _run_server(self) -> None:
        """Do what the server does after each message: open contexts, start the next pass, send."""
        now_s = self.clock.now()
        while job := self.protocol.next_open(now_s):
            self.protocol.finish(self._runner.open((job,)), now_s)
        if not self._is_running and (jobs := self.protocol.next_batch(now_s)):
            self._is_running = True
            duration_s = self.cost.pass_s(jobs)
            done = self._runner.run(jobs)
            results = tuple(replace(result, compute_s=duration_s) for result in done.results)
            ended = replace(done, results=results, pass_s=duration_s)
            self._schedule(now_s + duration_s, partial(self._end, ended))
        while self.protocol.outbox:
            name, data = self.protocol.outbox.popleft()
            arrival_s = self._links[name][1].arrival(len(data), now_s)
            self._schedule(arrival_s, partial(self._deliver, self._by_name[name], data))

    def _end(self, done: BatchResult) -> None:
        self._is_running = False
        self.busy_s += done.pass_s
        self.protocol.finish(done, self.clock.now())

    def _schedule(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (time_s, next(self._order), action))
