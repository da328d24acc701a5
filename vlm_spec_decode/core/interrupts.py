"""Signals that wait until a call into a C extension has returned, and Ctrl-C that no callback swallows."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM)


class HeldSignals:
    """Which of the signals have come since; they are delivered at the end of `hold_interrupts`."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def add(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal; the handler while they are held."""
        self.numbers.append(number)


@contextmanager
def hold_interrupts() -> Iterator[HeldSignals]:
    """Hold Ctrl-C and SIGTERM during the block, and give them to their own handlers at its end.

    A Python handler that raises within a call from C into Python ends in whatever the C code makes of it:
    pybind11 turned KeyboardInterrupt into "TypeError: Unable to convert function return value" in one of a
    hundred interrupts of rclpy, and some were lost. A block that may last asks the yielded object whether it
    should return. Signals without a Python handler (ignored, or the default that ends the process) keep
    theirs. Without effect outside the main thread, where Python runs no handlers.
    """
    held = HeldSignals()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    own = {number: handler for number in HELD if callable(handler := signal.getsignal(number))}
    for number in own:
        signal.signal(number, held.add)
    try:
        yield held
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        for caught in held.numbers:
            own[signal.Signals(caught)](caught, None)


@contextmanager
def keep_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block if Ctrl-C came in it and what it raised was lost.

    For imports: an exception in a callback of the import system is printed and forgotten. Elsewhere it is
    raised as ever, at once. Without effect where Ctrl-C has a handler of the program's own, and outside the
    main thread, where Python runs no handlers.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt
