"""One executor for one robot: a lease that every executor requests, holds while it lives, and releases.

An executor publishes its request on boards that all executors of that robot read, and waits for a while: if
it reads the claim of a holder, or an earlier request, it gives up with a named error. A holder repeats its
claim; after a period of silence the lease is free. The order of requests is given by a stamp in the claim
itself, so both sides see the same order, whatever their clocks. If two executors hold the lease (their
network was cut), the later one gives up and brings the robot to rest. (The vendor's own lease service is
off for `sport`.)

No stop ever waits for a lease. `Arbiter` is pure; `Lease` gives it a thread and boards.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from vlm_spec_decode.core.errors import RobotHeld
from vlm_spec_decode.core.ports import Clock

CLAIM_PERIOD_S = 0.2
"""Period of repeating a claim."""
POLL_S = 0.05
LEASE_S = 1.0
"""Silence after which a holder counts as dead, and the longest pause after which it still holds."""
WAIT_S = 1.0
"""How long a new executor listens before it holds; less than `LEASE_S` would miss a busy holder."""
ANSWER_S = 0.02
MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Claim:
    """An executor's claim. `since_s` is its wall clock at the request: used for the order only."""

    id: str
    node: str
    host: str
    pid: int
    since_s: float
    holds: bool = False
    left: bool = False

    @property
    def order(self) -> tuple[float, str]:
        """Sort key: the earliest request wins. It is the same for every reader of the claim."""
        return (self.since_s, self.id)

    def to_json(self) -> str:
        """Return the claim as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Claim | None:
        """Return the claim in a line; None if it is invalid, since anyone can write on a board."""
        try:
            data: Any = json.loads(text) if len(text) <= MAX_TEXT else None
            kinds = {"id": str, "node": str, "host": str, "pid": int, "holds": bool, "left": bool}
            since_s = float(data["since_s"])
            values = {name: data[name] for name in kinds}
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        fits = all(type(values[name]) is kind for name, kind in kinds.items())
        return cls(since_s=since_s, **values) if fits and math.isfinite(since_s) else None

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(self.since_s, 0.0), 4e9)))
        return f"{self.node[:100]!r} (pid {self.pid} on host {self.host[:100]!r}, since {since} by its clock)"


def new_claim(node: str) -> Claim:
    """Return the claim of an executor in this process that asks now."""
    return Claim(uuid.uuid4().hex, node, socket.gethostname(), os.getpid(), time.time())


class Arbiter:
    """One executor's part of the agreement: claims to send, claims received, and whether it holds the lease.

    Every method takes the time of a monotonic clock. Not safe for threads.
    """

    def __init__(self, own: Claim, now_s: float, wait_s: float = WAIT_S) -> None:
        self.own = own
        self.winner: Claim | None = None
        """The executor that holds or will hold the robot instead. Once set, this one has lost for good."""
        self._holds_at_s = now_s + wait_s
        self._ticked_s = now_s

    @property
    def is_over(self) -> bool:
        """Whether it has lost or released the lease."""
        return self.winner is not None or self.own.left

    def on_claim(self, claim: Claim, now_s: float, wall_s: float) -> bool:
        """Process another executor's claim; return whether to publish our own at once."""
        # First update our own state: after a long pause our claim may have expired.
        self.tick(now_s, wall_s)
        if claim.id == self.own.id or claim.left or self.is_over:
            return False
        yields = claim.holds if claim.holds != self.own.holds else claim.order < self.own.order
        if yields:
            self.winner = claim
        return not yields

    def tick(self, now_s: float, wall_s: float) -> None:
        """Hold the lease once no other claim has arrived for long enough.

        If this process paused for longer than a lease, another executor may hold it now. Then our request
        counts as the latest, so that the other one keeps the lease.
        """
        slept, self._ticked_s = now_s - self._ticked_s > LEASE_S, now_s
        if self.is_over:
            return
        if slept:
            self.own = replace(self.own, since_s=max(wall_s, self.own.since_s))
            if not self.own.holds:
                # It did not listen meanwhile either.
                self._holds_at_s = now_s + LEASE_S
        if now_s >= self._holds_at_s and not self.own.holds:
            self.own = replace(self.own, holds=True)

    def release(self) -> None:
        """Release the lease."""
        self.own = replace(self.own, holds=False, left=True)


class Board(Protocol):
    """Where executors of one robot publish their claims: a topic, over any transport."""

    def open(self, on_text: Callable[[str], None]) -> None:
        """Open the board; `on_text` gets what others write, on any thread. Raises RobotError. Idempotent."""
        ...

    def write(self, text: str) -> None:
        """Publish a text. Never blocks and never raises."""
        ...

    def poll(self) -> None:
        """Read new texts, on boards that have no thread of their own."""
        ...

    def close(self) -> None:
        """Close the board. Idempotent."""
        ...


class Lease:
    """A robot's lease for this process. `on_lost` is called once, on the lease's thread, if it is lost."""

    def __init__(
        self,
        boards: Sequence[Board],
        node: str,
        clock: Clock,
        on_lost: Callable[[RobotHeld], None],
        wait_s: float = WAIT_S,
    ) -> None:
        self._boards, self._node, self._clock = tuple(boards), node, clock
        self._on_lost, self._wait_s = on_lost, wait_s
        self._lock = threading.Lock()
        self._arbiter: Arbiter | None = None
        self._written_s = -math.inf
        self._closing = threading.Event()
        self._decided = threading.Event()
        self._thread: threading.Thread | None = None
        self.unreadable = 0

    @property
    def was_held(self) -> bool:
        """Whether this process has ever held the robot, and so may have moved it."""
        return self._decided.is_set()

    @property
    def holds(self) -> bool:
        """Whether this process holds the robot now."""
        with self._lock:
            return self._arbiter is not None and self._arbiter.own.holds and not self._arbiter.is_over

    def acquire(self) -> bool:
        """Request the lease, listen, and hold it; False if `close` was called first.

        Raises RobotHeld that names the holder, or RobotError if a board cannot be reached.
        """
        if self._thread is None:
            for board in self._boards:
                board.open(self._on_text)
            self._arbiter = Arbiter(new_claim(self._node), self._clock.now(), self._wait_s)
            thread = threading.Thread(target=self._run, name="lease", daemon=True)
            # Started first: `close` may come at any moment, and joins what it finds here.
            thread.start()
            self._thread = thread
        pause = threading.Event()
        while not self._closing.is_set():
            with self._lock:
                arbiter = self._arbiter
                winner = arbiter.winner if arbiter else None
                if arbiter is not None and arbiter.own.holds and winner is None:
                    self._decided.set()
                    return True
            if winner is not None:
                raise RobotHeld(self._refusal(winner))
            pause.wait(POLL_S / 2)
        return False

    def close(self) -> None:
        """Release the lease and close the boards. Idempotent."""
        was_open = not self._closing.is_set()
        self._closing.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5.0)
        if was_open and self._arbiter is not None:
            with self._lock:
                self._arbiter.release()
                text = self._arbiter.own.to_json()
            for board in self._boards:
                board.write(text)
        for board in self._boards:
            board.close()

    def _run(self) -> None:
        while not self._closing.wait(POLL_S):
            for board in self._boards:
                board.poll()
            with self._lock:
                assert self._arbiter is not None
                now_s = self._clock.now()
                self._arbiter.tick(now_s, time.time())
                winner = self._arbiter.winner
                due = winner is None and now_s - self._written_s >= CLAIM_PERIOD_S
            if due:
                self._write()
            if winner is not None:
                if self._decided.is_set():
                    self._on_lost(RobotHeld(self._refusal(winner)))
                return

    def _write(self) -> None:
        with self._lock:
            assert self._arbiter is not None
            text, self._written_s = self._arbiter.own.to_json(), self._clock.now()
        for board in self._boards:
            board.write(text)

    def _on_text(self, text: str) -> None:
        claim = Claim.from_json(text)
        with self._lock:
            if claim is None or self._arbiter is None:
                self.unreadable += claim is None
                return
            answers = self._arbiter.on_claim(claim, self._clock.now(), time.time())
            answers = answers and self._clock.now() - self._written_s >= ANSWER_S
        if answers and not self._closing.is_set():
            self._write()

    def _refusal(self, winner: Claim) -> str:
        what = "holds this robot already" if winner.holds else "asked for this robot first"
        return (
            f"{winner} {what}; end that one, or give this one a namespace and a robot (DDS domain) of its own"
        )
