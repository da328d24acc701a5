"""A bit flipped anywhere in what a connection carries, either way: the answer goes on over a new one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq

from test.net.line import Line, line_to, lines_to
from test.net.test_service import PATIENT_S, receive
from test.net.test_sockets import CLOCK, HELLO, own_answer
from test.tables import TARGET, TableModel
from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.types import AnswerRequest, Commit, Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.access import KeyLimits
from vlm_spec_decode.transport.connection import Connection
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.router import RouterLink

pytestmark = pytest.mark.net

PARAMS = SamplingParams(temperature=1.0, max_tokens=12, seed=3)
TIMING = ProtocolTiming(ping_s=0.1, renew_s=0.5, welcome_timeout_s=0.8, give_up_s=20.0, hello_retry_s=0.1)
GREETING_BYTES = 64
STEP, FRAMES = 31, 12
"""Of bodies, which CURVE seals as a whole, one byte in so many is tried; of so many frames, all their own."""

LONGEST_S = 10.0
"""Of a pause, on a machine that is busy with other tests; benchmarks/hardening_line.py has the bar."""

AT_ONCE = 16
"""Robots that ask at the same time, each over a line of its own."""


@dataclass
class Robot:
    """The edge's protocol over a connection, without a thread: asks two questions, one after the other."""

    line: Line
    connection: Connection
    protocol: ClientProtocol
    said: list[Tokens] = field(default_factory=list)
    error: CloudError | None = None
    heard_s: float = 0.0
    pause_s: float = 0.0
    is_over: bool = False

    def begin(self) -> None:
        self.heard_s = CLOCK.now()
        self.protocol.connect(self.heard_s)
        self._ask()

    @property
    def is_done(self) -> bool:
        return self.error is not None or self.is_over

    def _ask(self) -> None:
        self.said.append(())
        request = AnswerRequest(len(self.said), Observation(None, "go " * 60), PARAMS, "autoregressive")
        self.protocol.open(request, CLOCK.now())

    def step(self) -> None:
        for data in self.connection.receive():
            self.protocol.receive(data, CLOCK.now())
        self.protocol.tick(CLOCK.now())
        self.protocol.maintain(self.connection, CLOCK.now())
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
        if not commit.finished:
            return
        self.protocol.close(now_s)
        self.is_over = len(self.said) == 2
        if not self.is_over:
            self._ask()


@contextmanager
def served(folder: Path | None) -> Iterator[str]:
    """A cloud that many robots may use at once."""
    limits = KeyLimits(messages_per_s=1e9, bytes_per_s=1e12)
    link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder) if folder else None, limits)
    target = TableModel(TARGET)
    protocol = ServerProtocol(target.card, "grammar", ServerLimits(sessions=4096, batch=AT_ONCE))
    server = CloudServer(link, protocol, target, CLOCK)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()


def ask_over(address: str, folder: Path | None, flips: list[tuple[int, int, bool]]) -> list[Robot]:
    """Let one robot per flip (offset, bit, is_up) ask over a line that does it, and return all when done."""
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
            robots.append(Robot(line, connection, ClientProtocol(HELLO, TIMING)))
            robots[-1].begin()
        until_s = CLOCK.now() + PATIENT_S
        while not all(robot.is_done for robot in robots):
            assert CLOCK.now() < until_s, [robot for robot in robots if not robot.is_done]
            for robot in robots:
                if not robot.is_done:
                    robot.step()
            CLOCK.sleep(0.002)
        for robot in robots:
            robot.connection.close(0)
    return robots


def places(stream: bytes) -> list[int]:
    """Return where to flip a bit in what a connection has carried one way.

    All of the frames' own bytes (flags and length, the first of what follows), and every so many of the rest.
    """
    found = set(range(0, GREETING_BYTES, 3)) | set(range(GREETING_BYTES, len(stream), STEP))
    at = GREETING_BYTES
    for _ in range(FRAMES):
        if at + 9 >= len(stream):
            break
        is_long = stream[at] & 2
        size = int.from_bytes(stream[at + 1 : at + 9], "big") if is_long else stream[at + 1]
        header = 9 if is_long else 2
        found |= set(range(at, at + header + 2))
        at += header + size
    return sorted(found)


@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("is_encrypted", [True, False], ids=["curve", "plain"])
def test_a_bit_flipped_anywhere(key_folder: Path, is_up: bool, is_encrypted: bool) -> None:
    """Greeting, handshake, short and long frames; every place with another bit.

    CURVE finds whatever was changed, and answers are right. Without it only the frames' own bytes can be
    noticed, and what a message says may be wrong, but nobody waits for what never comes.
    """
    folder = key_folder if is_encrypted else None
    with served(folder) as address:
        (sound,) = ask_over(address, folder, [(10**9, 0, True)])
        assert sound.line.made == 1
        where = places(bytes(sound.line.carried[is_up]))
        flips = [(offset, (offset * 5 + offset // 8) % 8, is_up) for offset in where]
        robots = []
        for start in range(0, len(flips), AT_ONCE):
            robots += ask_over(address, folder, flips[start : start + AT_ONCE])
    harmed = [robot for robot in robots if robot.line.flipped]
    assert len(harmed) > 0.8 * len(robots)
    if is_encrypted:
        assert [(r.said, r.error) for r in harmed if r.said != [own_answer(PARAMS)] * 2] == []
    assert max(robot.pause_s for robot in harmed) < LONGEST_S
    assert sum(robot.line.made > 1 for robot in harmed) > len(harmed) / 10


def test_a_line_of_a_second_each_way_is_served_over_one_connection(key_folder: Path) -> None:
    """1 s there and back: neither handshake nor pings take a slow line for a damaged one."""
    with served(key_folder) as address, lines_to(address, 1, delay_s=(0.5, 0.5)) as (line,):
        link = DealerLink(line.address, keys.edge_keys(key_folder), CLOCK)
        verifier = RemoteVerifier(link, HELLO, CLOCK)
        try:
            verifier.connect(timeout_s=20.0)
            verifier.open(AnswerRequest(1, Observation(None, "go"), PARAMS, "autoregressive"))
            assert tuple(receive(verifier, PARAMS.max_tokens)) == own_answer(PARAMS)
            settled = line.made
            CLOCK.sleep(2.0)
            assert line.made == settled <= 3
        finally:
            verifier.disconnect()


@pytest.mark.alone
def test_a_line_that_is_held_up_for_seconds_goes_on_at_once(key_folder: Path) -> None:
    """What was held up comes at the end of it; a new connection is no condition for that."""
    with served(key_folder) as address, line_to(address) as line:
        link = DealerLink(line.address, keys.edge_keys(key_folder), CLOCK)
        verifier = RemoteVerifier(link, HELLO, CLOCK)
        try:
            verifier.connect(timeout_s=20.0)
            line.stall()
            verifier.open(AnswerRequest(1, Observation(None, "go"), PARAMS, "autoregressive"))
            CLOCK.sleep(4.0)
            line.go_on()
            went_on_s = CLOCK.now()
            assert tuple(receive(verifier, PARAMS.max_tokens)) == own_answer(PARAMS)
            assert CLOCK.now() - went_on_s < 4.0
        finally:
            verifier.disconnect()
