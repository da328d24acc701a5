"""A bit flipped anywhere in what a connection carries, either way: the answer goes on over a new connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import zmq

from test.net.line import Line, line_to, lines_to
from test.net.test_service import PATIENT_S, StepwiseModel, receive
from test.net.test_sockets import CLOCK, HELLO, own_answer
from test.tables import TARGET, TableModel
from vlm_spec_decode.cloud.desk import CloudDesk, DeskLimits
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.types import AnswerRequest, Commit, Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.client import EdgeProtocol, Timing
from vlm_spec_decode.edge.remote import RemoteVerifier
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.connection import Connection
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.guard import KeyLimits
from vlm_spec_decode.transport.router import RouterLink

pytestmark = pytest.mark.net

PARAMS = SamplingParams(temperature=1.0, max_tokens=12, seed=3)
TIMING = Timing(ping_s=0.1, renew_s=0.4, greet_s=0.6, give_up_s=20.0, hello_retry_s=0.1)
STEP = 1
LONGEST_S = 3.0
AT_ONCE = 120
"""Robots that ask at the same time, each over a line of its own."""


@dataclass
class Robot:
    """The edge's protocol over a connection, without a thread: asks two questions, one after the other."""

    line: Line
    connection: Connection
    protocol: EdgeProtocol
    said: list[Tokens] = field(default_factory=list)
    error: CloudError | None = None
    heard_s: float = 0.0
    pause_s: float = 0.0
    renewals: int = 0

    def begin(self) -> None:
        self.heard_s = CLOCK.now()
        self.protocol.connect(self.heard_s)
        self._ask()

    @property
    def is_done(self) -> bool:
        return self.error is not None or (len(self.said) == 2 and len(self.said[1]) >= PARAMS.max_tokens)

    def _ask(self) -> None:
        self.said.append(())
        request = AnswerRequest(len(self.said), Observation(None, "go " * 60), PARAMS, "autoregressive")
        self.protocol.open(request, CLOCK.now())

    def step(self) -> None:
        for data in self.connection.receive():
            self.protocol.receive(data, CLOCK.now())
        self.protocol.tick(CLOCK.now())
        if self.protocol.renewals != self.renewals:
            self.renewals = self.protocol.renewals
            self.connection.renew()
        elif self.protocol.is_echoed:
            self.connection.settle()
        while self.protocol.outbox:
            self.connection.send(self.protocol.outbox.popleft())
        while self.protocol.events and not self.is_done:
            event = self.protocol.events.popleft()
            if isinstance(event, CloudError):
                self.error = event
            elif isinstance(event, Commit):
                self._take(event)

    def _take(self, commit: Commit) -> None:
        now_s = CLOCK.now()
        self.pause_s, self.heard_s = max(self.pause_s, now_s - self.heard_s), now_s
        assert commit.start == len(self.said[-1])
        self.said[-1] += commit.tokens
        if len(self.said[-1]) >= PARAMS.max_tokens and len(self.said) == 1:
            self.protocol.close(now_s)
            self._ask()


@contextmanager
def served(folder: Path | None) -> Iterator[str]:
    """A cloud that many robots may use at once."""
    limits = KeyLimits(messages_per_s=1e9, bytes_per_s=1e12)
    link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder) if folder else None, limits)
    target = TableModel(TARGET)
    desk = CloudDesk(target.card, "grammar", DeskLimits(sessions=4 * AT_ONCE, batch=4 * AT_ONCE))
    server = CloudServer(link, desk, target, CLOCK)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()


def ask_over(address: str, folder: Path | None, flips: list[tuple[int, int, bool]]) -> list[Robot]:
    """Let one robot per flip (offset, bit, is_up) ask over a line that does it; return them when all are done."""
    edge_keys = keys.edge_keys(folder) if folder else None
    with ExitStack() as stack:
        lines = stack.enter_context(lines_to(address, len(flips)))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 20 * AT_ONCE)
        stack.callback(context.destroy, 0)
        robots = []
        for line, (offset, bit, is_up) in zip(lines, flips, strict=True):
            line.flip_at(offset, bit, is_up=is_up)
            connection = Connection(context, line.address, edge_keys)
            robots.append(Robot(line, connection, EdgeProtocol(HELLO, TIMING)))
            robots[-1].begin()
        until_s = CLOCK.now() + PATIENT_S
        while not all(robot.is_done for robot in robots):
            assert CLOCK.now() < until_s
            for robot in robots:
                if not robot.is_done:
                    robot.step()
            CLOCK.sleep(0.002)
        for robot in robots:
            robot.connection.close(0)
    return robots


def carried(address: str, folder: Path | None, *, is_up: bool) -> int:
    """Return how many bytes a sound connection carries in a direction while its robot asks."""
    (robot,) = ask_over(address, folder, [(10**9, 0, True)])
    assert robot.line.made == 1
    assert robot.pause_s < TIMING.renew_s
    return robot.line.carried[is_up]


@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("is_encrypted", [True, False], ids=["curve", "plain"])
def test_a_bit_flipped_at_any_offset(key_folder: Path, is_up: bool, is_encrypted: bool) -> None:
    """Greeting, handshake, short and long frames; each offset with another bit.

    CURVE finds whatever was changed, and answers are right. Without it only the frames' own bytes can be
    noticed, and what a message says may be wrong, but nobody waits for what never comes.
    """
    folder = key_folder if is_encrypted else None
    with served(folder) as address:
        total = carried(address, folder, is_up=is_up)
        flips = [(offset, (offset * 5 + offset // 8) % 8, is_up) for offset in range(0, total, STEP)]
        robots = []
        for start in range(0, len(flips), AT_ONCE):
            robots += ask_over(address, folder, flips[start : start + AT_ONCE])
    harmed = [robot for robot in robots if robot.line.flipped]
    assert len(harmed) > 0.9 * len(robots)
    expected = [own_answer(PARAMS)] * 2
    wrong = [(r.said, r.error) for r in harmed if r.said != expected]
    assert not is_encrypted or not wrong
    assert max(robot.pause_s for robot in harmed) < LONGEST_S
    print("TOTAL", total, len(wrong), max(robot.pause_s for robot in harmed), sum(r.line.made>1 for r in harmed), sum(r.renewals for r in harmed))
