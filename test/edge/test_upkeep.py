"""Time-outs are looked at ten times a second however many messages come, and at once when none does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from vlm_spec_decode.edge.verifier_remote import UPKEEP_S, RemoteVerifier
from vlm_spec_decode.protocol.messages import Hello


class Line:
    """A link that only takes what is sent."""

    addresses = ("tcp://127.0.0.1:1",)

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def switch_to(self, index: int) -> None:
        assert index == 0

    def was_connected(self) -> bool:
        return False

    def cancel_renewal(self) -> None:
        pass


class Time:
    at_s = 0.0

    def now(self) -> float:
        return self.at_s


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Line, Time, list[float]]:
    line, time, ticks = Line(), Time(), list[float]()
    verifier: Any = RemoteVerifier(line, Hello("t", "a", "b", "c", 64), time)  # type: ignore[arg-type]
    monkeypatch.setattr(verifier._connection.protocol, "tick", ticks.append)
    return verifier, line, time, ticks


def test_upkeep_goes_on_while_messages_keep_the_link_busy(edge: tuple[Any, Line, Time, list[float]]) -> None:
    verifier, line, time, ticks = edge
    for _ in range(100):
        time.at_s += UPKEEP_S / 10
        verifier._connection.protocol.outbox.append(b"x")
        verifier._connection._flush()
    assert len(line.sent) == 100, "each goes out at once"
    assert len(ticks) == pytest.approx(10, abs=1)
    assert max(b - a for a, b in pairwise(ticks)) <= 1.2 * UPKEEP_S


def test_upkeep_is_done_whenever_the_link_has_nothing_to_hand_over(
    edge: tuple[Any, Line, Time, list[float]],
) -> None:
    verifier, line, time, ticks = edge
    for _ in range(10):
        time.at_s += UPKEEP_S / 100
        verifier._connection._flush()
    assert len(ticks) == 10
    assert line.sent == []
