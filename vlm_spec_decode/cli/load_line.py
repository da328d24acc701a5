"""The line of a terminal that shows how far a long load is; stdout is left to the command's own output."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from vlm_spec_decode.core.load_progress import Load, shown_by

if TYPE_CHECKING:
    from rich.live import Live

REFRESHES_PER_S = 4


class LoadLines(logging.Handler):
    """Draws one line for each load under way, and leaves it there with its time when the load has ended.

    That of a load whose end is of no interest is taken away.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.INFO)
        self._stream = stream
        self._loads: list[Load] = []
        self._live: Live | None = None
        self._lines = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Take up a load at its first record; draw for the last time when none is under way any more."""
        load: Load = record.load  # type: ignore[attr-defined]
        with self._lines:
            if load not in self._loads:
                self._loads.append(load)
            if self._live is None:
                self._write(load)
                self._live = self._drawn()
            if load.is_minor and load.ended_s is not None:
                self._loads.remove(load)
            if all(each.ended_s is not None for each in self._loads):
                self._stop()

    def close(self) -> None:
        """Stop drawing."""
        with self._lines:
            self._stop()
        super().close()

    def _write(self, load: Load) -> None:
        """Write the first line as it is, for rich to draw over: its import takes a while by itself."""
        if os.environ.get("TERM", "dumb") != "dumb":
            self._stream.write(str(load)[: shutil.get_terminal_size().columns - 1] + "\r")
            self._stream.flush()

    def _drawn(self) -> Live:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        live = Live(
            console=Console(file=self._stream),
            get_renderable=lambda: Text("\n".join(map(str, self._loads))),
            refresh_per_second=REFRESHES_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        live.start(refresh=True)
        return live

    def _stop(self) -> None:
        if self._live is not None:
            self._live.transient = not self._loads
            self._live.stop()
        self._live = None
        self._loads = []


@contextmanager
def load_lines(stream: TextIO | None = None) -> Iterator[None]:
    """Show long loads in `stream`, by default stderr, if that is a terminal."""
    shown = sys.stderr if stream is None else stream
    if shown is None or not shown.isatty():
        yield
        return
    with shown_by(LoadLines(shown)):
        yield
