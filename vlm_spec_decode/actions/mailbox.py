"""Where other threads leave what the control thread takes at its next tick. Nothing here blocks."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from vlm_spec_decode.actions.plan import Plan


@dataclass(frozen=True, slots=True)
class Letter:
    """A plan, when it arrived, and how old its frame was then."""

    plan: Plan
    arrived_s: float
    frame_age_s: float


@dataclass(frozen=True, slots=True)
class Orders:
    """All that came since the last tick. `void` came before a cancel or during an e-stop."""

    drop_reason: str
    void: tuple[Letter, ...]
    letters: tuple[Letter, ...]


class Mailbox:
    """Plans and the order to drop everything, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drop_reason = ""
        self._void: list[Letter] = []
        self._letters: list[Letter] = []

    def post(self, letter: Letter, *, void: bool) -> None:
        """Leave a plan; a void one is only answered, never carried out."""
        with self._lock:
            (self._void if void else self._letters).append(letter)

    def drop(self, reason: str) -> None:
        """Void what was posted so far, and tell the control thread to drop what it does."""
        with self._lock:
            self._drop_reason = reason
            self._void += self._letters
            self._letters.clear()

    def take(self) -> Orders:
        """Return everything and empty the box."""
        with self._lock:
            orders = Orders(self._drop_reason, tuple(self._void), tuple(self._letters))
            self._drop_reason = ""
            self._void.clear()
            self._letters.clear()
        return orders
