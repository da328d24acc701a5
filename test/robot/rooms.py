"""Boards of leases in one process: what one writes, the others hear at once, unless they are cut apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Rooms:
    """Makes boards that belong together."""

    def __init__(self) -> None:
        self.is_cut = False
        self.boards: list[RoomBoard] = []

    def board(self) -> RoomBoard:
        self.boards.append(RoomBoard(self))
        return self.boards[-1]

    @staticmethod
    def wait(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
        end_s = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < end_s:
            time.sleep(0.01)
        return condition()

    @staticmethod
    def later(delay_s: float, act: Callable[[], None]) -> None:
        threading.Timer(delay_s, act).start()


class RoomBoard:
    """A `robot.lease.Board`."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        self.hear: Callable[[str], None] | None = None

    def open(self, hear: Callable[[str], None]) -> None:
        self.hear = hear

    def write(self, text: str) -> None:
        for board in self.rooms.boards:
            if board is not self and board.hear is not None and not self.rooms.is_cut:
                board.hear(text)

    def poll(self) -> None:
        pass

    def close(self) -> None:
        self.hear = None
