"""Word of a load that takes long: one line after two seconds, and one at its end; none for a short load.

The import of the libraries, which a load begins with, takes seconds as well and is told at once.

The lines are records of the logger `LOGGER`, so that each program shows them in its own way: as lines of a
log, through a ROS node's logger, or as one line of a terminal that is drawn anew (`cli.load_line`). A record
carries the load itself as `record.load`, for those who show how far it is.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import TypeVar

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.interrupts import keep_interrupts

Result = TypeVar("Result")

LOGGER = "vlm_spec_decode.loading"
log = logging.getLogger(LOGGER)

SHOWN_AFTER_S = 2.0

LIBRARY = "torch"
"""The library whose import takes longest."""


@dataclass(slots=True, eq=False)
class Load:
    """One load that goes on: what is loaded, and how much there is to read.

    `role` says whether it is the draft or the target, where that is known. `shares` is how much of each part
    of the work has been done, from 0 to 1; the parts count alike. `is_minor`: its end is of no interest.
    """

    name: str
    role: str = ""
    is_minor: bool = False
    total_bytes: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    has_failed: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    def advance(self, part: str, share: float) -> None:
        """Note how much of a part has been done. Raises ModelError if the load is to stop."""
        self.shares[part] = share
        if self.stop.is_set():
            raise ModelError("stopped, because a load beside it has ended")

    @property
    def done_bytes(self) -> float:
        """About how much has been read."""
        shares = tuple(self.shares.values())
        return self.total_bytes * sum(shares) / len(shares) if shares else 0.0

    def __str__(self) -> str:
        """Return `loading draft NAME … 3.1 of 15.2 GB`, at the end `loaded draft NAME (15.2 GB) in 41 s`."""
        unit, name = (1e9, "GB") if self.total_bytes >= 1e9 else (1e6, "MB")
        total = f"{self.total_bytes / unit:.1f} {name}"
        if self.ended_s is None:
            read = f"{self.done_bytes / unit:.1f} of {total}" if self.total_bytes else ""
            return f"loading {self.title} … {read}".rstrip()
        size = f" ({total})" if self.total_bytes else ""
        verb = "gave up loading" if self.has_failed else "loaded"
        return f"{verb} {self.title}{size} {'after' if self.has_failed else 'in'} {self._taken_s:.0f} s"

    @property
    def title(self) -> str:
        """The name after the role, which says nothing new of a folder that is called `target`."""
        return f"{self.role} {self.name}" if self.role not in ("", self.name) else self.name

    @property
    def _taken_s(self) -> float:
        return (self.ended_s or self.began_s) - self.began_s


_CURRENT: ContextVar[Load | None] = ContextVar("load", default=None)
_STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


def current_load() -> Load:
    """Return the load that this code is part of; outside of one a load that nobody looks at."""
    return _CURRENT.get() or Load("")


@contextmanager
def reported(
    name: str, after_s: float = SHOWN_AFTER_S, *, role: str = "", is_minor: bool = False
) -> Iterator[Load]:
    """Report what happens inside as a load, once it has taken `after_s`; at 0 at once."""
    load = Load(name, role, is_minor, stop=_STOP.get() or threading.Event())
    lock, is_shown = threading.Lock(), False

    def show() -> None:
        nonlocal is_shown
        with lock:
            if load.ended_s is None:
                is_shown = True
                log.info("%s", load, extra={"load": load})

    timer = threading.Timer(after_s, show)
    timer.daemon = True
    if after_s > 0:
        timer.start()
    else:
        show()
    token = _CURRENT.set(load)
    try:
        yield load
    except BaseException:
        load.has_failed = True
        raise
    finally:
        _CURRENT.reset(token)
        with lock:
            timer.cancel()
            load.ended_s = time.monotonic()
        if is_shown:
            log.info("%s", load, extra={"load": load})


@contextmanager
def importing() -> Iterator[None]:
    """Report what happens inside, at once, as the import of the libraries that run models, if it is that."""
    if LIBRARY in sys.modules:
        yield
        return
    with keep_interrupts(), reported("libraries", 0.0, is_minor=True):
        yield


class LoadLog(logging.Handler):
    """Hands the lines to a function, such as a ROS logger's `info`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on."""
        self._write(record.getMessage())


@contextmanager
def shown_by(handler: logging.Handler) -> Iterator[None]:
    """Let a handler show the lines meanwhile, whatever else is set up for logging."""
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


@contextmanager
def beside(parts: Sequence[Callable[[], Result]]) -> Iterator[Sequence[Future[Result]]]:
    """Run loads in the background; if what happens meanwhile fails, stop them and wait for their end.

    A program must not end while a thread of it is in the middle of a library.
    """
    stop = threading.Event()
    token = _STOP.set(stop)
    futures = [in_background(part) for part in parts]
    _STOP.reset(token)
    try:
        yield futures
    except BaseException:
        stop.set()
        wait(futures)
        raise


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Start a part of a load in a thread of its own; a program that ends does not wait for it."""
    future: Future[Result] = Future()
    context = copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the result
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future
