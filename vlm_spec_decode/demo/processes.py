"""Processes of one run: started with a log each, watched, and ended together whatever happens.

Every process leads a group of its own, so that Ctrl-C reaches only the run itself, which then ends them in
order: a signal, patience, SIGKILL for the whole group. Should the run be killed, the kernel ends them
(`run_below`). To be used from the main thread: the kernel watches the thread that started a process.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from vlm_spec_decode.core.errors import ProcessEnded
from vlm_spec_decode.core.ports import Clock

POLL_S = 0.05
STOP_S = 6.0
"""Time that a process gets to end by itself; the locomotion node stops the robot in it."""


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """A started process and where its output goes."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def last_line(self) -> str:
        """Return the last line of output that says something."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Processes:
    """A context in which processes live. Leaving it ends the last started first, groups of nodes together."""

    def __init__(self, logs: Path, clock: Clock, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._clock = clock
        self._environment = {**os.environ, **environment}
        self._running: list[ChildProcess] = []

    def __enter__(self) -> Processes:
        """Turn SIGTERM into the way that Ctrl-C takes."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._old_term = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything; a second Ctrl-C meanwhile changes nothing."""
        old_int = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self.stop([process.name for process in self._running])
        finally:
            signal.signal(signal.SIGINT, old_int)
            signal.signal(signal.SIGTERM, self._old_term)

    def start(self, name: str, arguments: Sequence[str]) -> ChildProcess:
        """Start `python ARGUMENTS` under the run's environment."""
        log = self._logs / f"{name}.log"
        # The source of one function, so that nothing of the package is imported before the command starts.
        code = f"{inspect.getsource(run_below)}\nrun_below()"
        launcher = [sys.executable, "-S", "-c", code, str(os.getpid())]
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [*launcher, sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        process = ChildProcess(name, popen, log)
        self._running.append(process)
        return process

    def check(self) -> None:
        """Raise ProcessEnded if one has ended that should run."""
        for process in self._running:
            code = process.popen.poll()
            if code is not None:
                raise ProcessEnded(process.name, code, process.last_line())

    def wait_ready(self, process: ChildProcess, timeout_s: float) -> dict[str, Any]:
        """Wait for the JSON line `{"event": "ready", …}`. Raises ProcessEnded."""
        until_s = self._clock.now() + timeout_s
        while self._clock.now() < until_s:
            for line in process.log.read_text(errors="replace").splitlines():
                if line.startswith('{"event": "ready"'):
                    found: dict[str, Any] = json.loads(line)
                    return found
            self.check()
            self._clock.sleep(POLL_S)
        raise ProcessEnded(process.name, 1, f"not ready within {timeout_s:.0f} s")

    def stop(self, names: Iterable[str]) -> None:
        """End these processes together and wait for them."""
        wanted = set(names)
        leaving = [process for process in self._running if process.name in wanted]
        self._running = [process for process in self._running if process.name not in wanted]
        for number, patience_s in ((signal.SIGINT, STOP_S), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            alive = [process for process in leaving if process.popen.poll() is None]
            for process in alive:
                _signal_group(process, number)
            until_s = self._clock.now() + patience_s
            while self._clock.now() < until_s and any(process.popen.poll() is None for process in alive):
                self._clock.sleep(POLL_S)
        for process in leaving:
            # The group outlives its leader if the leader left children behind.
            _signal_group(process, signal.SIGKILL)


def run_below() -> None:
    """Become the command `sys.argv[2:]`, which the kernel ends when the process `sys.argv[1]` ends.

    Its source alone runs in a new interpreter: it uses nothing from outside of itself. Exits if the kernel
    refuses, or if the parent has ended already.
    """
    import ctypes
    import os
    import signal
    import sys

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_parent_death_signal, signal.SIGTERM) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    # The parent may have ended before the call above.
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent has ended already")
    os.execvp(sys.argv[2], sys.argv[2:])


def _signal_group(process: ChildProcess, number: signal.Signals) -> None:
    try:
        os.killpg(process.popen.pid, number)
    except ProcessLookupError:
        return


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
