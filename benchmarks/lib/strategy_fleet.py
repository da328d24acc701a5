"""Many robots that run real strategies against one real scheduler, in virtual time.

A robot runs the edge half of its strategy in a thread of its own, of which one runs at a time; the cloud is
the server protocol with its scheduler, policies and sessions (`fleet.py`). Messages are encoded and take what
the link says; draft steps and passes take what the hardware profile says. The models are a pair whose
acceptance is known (`bench.synthetic`).

Questions come at times that are drawn beforehand, so every strategy is asked the same. A question is of use
until its deadline. One that comes while the robot is still answering waits for it, and is dropped if its
deadline passes meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from vlm_spec_decode.bench.synthetic import PairSpec, SyntheticFamily
from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.requests import BatchResult, Jobs, ServerJob
from vlm_spec_decode.cloud.server import BatchRunner
from vlm_spec_decode.core.ports import Model, Verifier
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import NO_TRACER, Tracer
from vlm_spec_decode.core.types import (
    AnswerRequest,
    EarlyExitVerdict,
    Event,
    Hint,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.models.paced import paced_draft
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.estimators import DraftRecord
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport.emulation import emulated_directions

from .fleet import BatchCost, Fleet

STACK_BYTES = 256 * 1024
"""Of a robot's thread: hundreds of them are alive at once."""


@dataclass(frozen=True, slots=True)
class SharedPassCost(BatchCost):
    """As `BatchCost`, where nodes past the free ones of each answer add up: rows are what a pass computes."""

    def pass_s(self, jobs: Jobs, exits: int = 0) -> float:
        """Return the time of one pass over these jobs, with so many early exits."""
        hardware = self.hardware
        nodes = [len(job.plan.nodes.tokens) if job.plan else 0 for job in jobs]
        fills = any(not job.request.is_cached for job in jobs)
        base_ms = hardware.prefill_ms if fills else hardware.verify_ms if any(nodes) else hardware.step_ms
        further = sum(max(0, count - hardware.free_nodes) for count in nodes)
        more = hardware.node_fraction * further + hardware.exit_fraction * exits
        return base_ms / 1000 * (self.factor_of(len(jobs)) + more)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: when it came and, in seconds of the clock, when its answer did; None: not in the run."""

    due_s: float
    deadline_s: float
    ended_s: float | None = None
    frame_id: str = ""
    tokens: Tokens = ()

    @property
    def is_in_time(self) -> bool:
        """Whether the answer came before its deadline."""
        return self.ended_s is not None and self.ended_s <= self.due_s + self.deadline_s


class _Ended(BaseException):
    """Ends a robot's thread at the end of the run."""


@dataclass(slots=True, eq=False)
class StrategyRobot(Verifier):
    """A robot: clock, verifier and thread of its strategy's edge half.

    `times_s` are when its questions come; `deadline_s` holds for each. `asked` has what became of them.
    """

    name: bytes
    strategy: str
    draft: Model
    hardware: HardwareProfile
    times_s: Seq[float]
    deadline_s: float
    params: SamplingParams
    draft_length: int = 6
    uplink_bps: float = 1e9
    asked: list[Asked] = field(default_factory=list)
    wake_s: float | None = None
    now_s: float = 0.0
    is_stopped: bool = False
    _until_s: float = 0.0
    _is_waiting: bool = False
    _answer: int = 0
    _inbox: deque[Event] = field(default_factory=deque)
    _outbox: list[wire.AnyMessage] = field(default_factory=list)
    _packer: codec.TokenPacker = field(init=False)
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _turn_ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._packer = codec.TokenPacker(self.draft.card.vocab_size)
        self._thread = threading.Thread(target=self._live, daemon=True)

    @property
    def questions(self) -> Seq[float]:
        """What it is asked, by time."""
        return self.times_s

    # What the fleet calls ------------------------------------------------------------------------

    def start(self, now_s: float) -> None:
        """Say Hello and begin to wait for the first question."""
        card = self.draft.card
        self._outbox.append(
            wire.Hello("", card.tokenizer_digest, card.prompt_digest, "grammar", card.vocab_size)
        )
        self._thread.start()
        self._resume(now_s)

    def receive(self, data: bytes, now_s: float) -> None:
        """Take a message; the strategy goes on if it waits for one."""
        message = codec.decode(data)
        if not isinstance(message, wire.WireCommit | wire.WireEarly) or message.answer != self._answer:
            return
        if isinstance(message, wire.WireCommit):
            self._inbox.append(self._packer.commit_from_wire(message))
        else:
            self._inbox.append(codec.early_exit_from_wire(message))
        if self._is_waiting:
            self._resume(now_s)

    def wake(self, now_s: float) -> None:
        """Go on after a sleep whose time is over."""
        if not self._is_waiting and now_s >= self._until_s - 1e-9:
            self._resume(now_s)

    def outgoing(self) -> Seq[bytes]:
        """Return the messages to send, once."""
        sent, self._outbox = [codec.encode(message) for message in self._outbox], []
        return sent

    def stop(self) -> None:
        """End the thread."""
        self.is_stopped = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join()

    # Clock and verifier of the strategy ------------------------------------------------------------

    def now(self) -> float:
        """Return virtual seconds."""
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        """Let time pass for the others."""
        self._until_s = self.wake_s = self.now_s + max(0.0, duration_s)
        self._end_turn()

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:  # noqa: ARG002
        """Send the question."""
        self._outbox.append(codec.open_message(request, self._packer, 0, ()))

    def submit(self, message: Hint) -> None:
        """Send a draft, if it holds anything."""
        if not hasattr(message, "tokens") or message.tokens:
            self._outbox.append(self._packer.client_message_to_wire(message))

    def poll(self) -> Event | None:
        """Return what has come."""
        return self._inbox.popleft() if self._inbox else None

    def wait(self, timeout_s: float) -> Event:  # noqa: ARG002
        """Let time pass until something comes."""
        while not self._inbox:
            self._is_waiting = True
            self._end_turn()
            self._is_waiting = False
        return self._inbox.popleft()

    def cancel(self) -> None:
        """Nobody cancels here."""

    def close(self) -> None:
        """Say that the answer has ended."""
        self._outbox.append(wire.Close(self._answer, 0))

    # The thread ------------------------------------------------------------------------------------

    def _resume(self, now_s: float) -> None:
        self.now_s = now_s
        self._go.release()
        self._turn_ended.acquire()

    def _end_turn(self) -> None:
        self._turn_ended.release()
        self._go.acquire()
        if self.is_stopped:
            raise _Ended

    def _live(self) -> None:
        self._go.acquire()
        try:
            record = DraftRecord()
            record.step.learn(1, self.hardware.draft_s(1))
            model = paced_draft(self.draft, self.hardware, self)
            for due_s in self.times_s:
                if due_s > self.now_s:
                    self.sleep(due_s - self.now_s)
                left_s = due_s + self.deadline_s - self.now_s
                self.asked.append(Asked(due_s, self.deadline_s))
                if left_s > 0:
                    frame_id, tokens = self._decode(model, left_s, record)
                    self.asked[-1] = replace(
                        self.asked[-1], ended_s=self.now_s, frame_id=frame_id, tokens=tokens
                    )
        except _Ended:
            return
        self._is_waiting = True
        self._turn_ended.release()

    def _decode(self, model: Model, left_s: float, record: DraftRecord) -> tuple[str, Tokens]:
        self._answer += 1
        self._inbox.clear()
        chosen = strategy(self.strategy)
        observation = Observation(None, "go", frame_id=str(1 + (int(self.name) + 7 * self._answer) % 61))
        step_s = record.step.base_s if chosen.drafts else 0.0
        request = AnswerRequest(
            self._answer, observation, self.params, self.strategy, draft_step_s=step_s, deadline_s=left_s
        )
        self.open(request)
        config = EdgeConfig(
            answer=self._answer,
            params=self.params,
            draft_length=self.draft_length,
            timeout_s=1e9,
            uplink_bps=self.uplink_bps,
            record=record,
        )
        context = model.open(observation)
        sequence = Sequence()
        for _ in chosen.decode(sequence, context, self, self, config):
            pass
        context.close()
        self.close()
        return observation.frame_id, sequence.tokens


@dataclass(slots=True)
class StrategyFleet(Fleet):
    """Runs `StrategyRobot`s. The server works when something has arrived, ended or come due."""

    robots: list[Any]
    cost: SharedPassCost
    _early: list[tuple[ServerJob, EarlyExitVerdict]] = field(default_factory=list)
    _is_due: bool = False
    _wake_at_s: float = -1.0

    def __post_init__(self) -> None:
        super(StrategyFleet, self).__post_init__()
        self._runner = BatchRunner(self.target, None, self.clock, lambda *early: self._early.append(early))

    def connect(self, robot: StrategyRobot, link: LinkProfile, seed: int) -> None:
        """Give a robot a link of its own; no message is lost on it."""
        self._links[robot.name] = emulated_directions(replace(link, loss=0.0), seed)
        self._schedule(0.0, partial(self._start, robot))

    def serve(self, until_s: float) -> None:
        """Run until it is `until_s`, then end all robots."""
        self.run_on(until_s, float("inf"))
        for robot in self.robots:
            robot.stop()

    @property
    def asked(self) -> list[Asked]:
        """What was asked of all robots."""
        return [asked for robot in self.robots for asked in robot.asked]

    @property
    def answered(self) -> int:
        """Nothing ends the run but its time."""
        return 0

    def _start(self, robot: Any) -> None:
        robot.start(self.clock.now())
        self._flush(robot)

    def _arrive(self, name: bytes, data: bytes) -> None:
        self.protocol.receive(name, data, self.clock.now())
        self._is_due = True

    def _run_server(self) -> None:
        if not self._is_due:
            return
        self._is_due = False
        now_s = self.clock.now()
        while job := self.protocol.next_open(now_s):
            self.protocol.finish(self._runner.open((job,)), now_s)
        if not self._is_running:
            self._begin_pass(now_s)
        self._send(now_s)

    def _begin_pass(self, now_s: float) -> None:
        jobs = self.protocol.next_batch(now_s)
        wake_s = self.protocol.wake_s()
        if not jobs and wake_s is not None and wake_s != self._wake_at_s:
            self._wake_at_s = wake_s
            self._schedule(max(now_s, wake_s), self._become_due)
        if not jobs:
            return
        self._is_running = True
        self._early.clear()
        done = self._runner.run(jobs)
        exits = max((sum(job is each for each, _ in self._early) for job in jobs), default=0)
        duration_s = self.cost.pass_s(jobs, exits)
        layers = self.target.card.num_layers
        for job, verdict in self._early:
            at_s = now_s + duration_s * verdict.exit_layer / layers
            self._schedule(at_s, partial(self._tell_early, job, verdict))
        results = tuple(replace(result, compute_s=duration_s) for result in done.results)
        ended = replace(done, results=results, pass_s=duration_s)
        self._schedule(now_s + duration_s, partial(self._end, ended))

    def _become_due(self) -> None:
        self._is_due = True

    def _tell_early(self, job: ServerJob, verdict: EarlyExitVerdict) -> None:
        self.protocol.early(job, verdict)
        self._send(self.clock.now())

    def _end(self, done: BatchResult) -> None:
        super(StrategyFleet, self)._end(done)
        self._is_due = True

    def _send(self, now_s: float) -> None:
        while self.protocol.outbox:
            name, data = self.protocol.outbox.popleft()
            arrival_s = self._links[name][1].arrival(len(data), now_s)
            self._schedule(arrival_s, partial(self._deliver, self._by_name[name], data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One cell: robots that are asked every `think_s` on average, during `seconds` of virtual time.

    Robot i has the i-th deadline and the i-th link, in turns. With `prices` the cloud tells strategies
    what its GPU's time costs.
    """

    robots: int
    hardware: HardwareProfile
    links: tuple[LinkProfile, ...]
    deadlines_s: tuple[float, ...]
    seconds: float
    think_s: float = 10.0
    max_tokens: int = 24
    acceptance: float = 0.9
    prices: bool = False


def ask(name: str, load: Load, kind: type[StrategyFleet] = StrategyFleet) -> StrategyFleet:
    """Return a fleet that has been asked everything under the strategy `name`; all are asked the same."""
    draft, target = SyntheticFamily.pair(PairSpec(acceptance=load.acceptance))
    robots = []
    for index in range(load.robots):
        rng = np.random.default_rng([load.robots, index])
        deadline_s = load.deadlines_s[index % len(load.deadlines_s)]
        link = load.links[index % len(load.links)]
        # A Poisson process; what could not end within the run is not asked.
        count = rng.poisson((load.seconds - deadline_s) / load.think_s)
        times_s = np.sort(rng.uniform(0, load.seconds - deadline_s, count))
        robot = StrategyRobot(
            name=b"%d" % index,
            strategy=name,
            draft=draft,
            hardware=load.hardware,
            times_s=[float(time_s) for time_s in times_s],
            deadline_s=deadline_s,
            params=SamplingParams(max_tokens=load.max_tokens),
            uplink_bps=min(1e9, link.up_mbps * 1e6),
        )
        robots.append(robot)
    limits = ServerLimits(sessions=2048, peers=4096, idle_s=1e9, evict_after_s=1e9, prices=load.prices)
    fleet = kind(target, robots, SharedPassCost(load.hardware), load.links[0], limits=limits)
    for index, robot in enumerate(robots):
        fleet.connect(robot, load.links[index % len(load.links)], index)
    fleet.serve(load.seconds)
    return fleet
