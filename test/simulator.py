"""A simulated Go2 in a process of its own, for tests, and gone after them whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_PROGRAM = """
import json, os, sys
from pathlib import Path
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.sim.app import run, stop_signals
from vlm_spec_decode.sim.settings import SimConfig
settings = json.loads(sys.argv[1])
settings["faults"] = tuple(settings.get("faults", ()))
for key in ("scene", "view", "truth"):
    if key in settings:
        settings[key] = Path(settings[key])
parent = os.getppid()
ready = lambda: print("ready", flush=True)
try:
    with stop_signals() as asked:
        run(SimConfig(**settings), lambda: asked() or os.getppid() != parent, on_ready=ready)
except VsdError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def dds_domain() -> int:
    """The DDS domain of this test process, from 100 on; others on the machine may test at the same time."""
    return 100 + os.getpid() % 60


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def launch(**settings: object) -> subprocess.Popen[str]:
    """Start a simulator on this worker's domain without waiting for it."""
    arguments = json.dumps({"domain": dds_domain(), **settings})
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def complaints(errors: str) -> str:
    """Return what a process wrote to stderr, less what cyclonedds 0.10 says of every loopback interface."""
    kept = [line for line in errors.splitlines(keepends=True) if "disabling multicast" not in line]
    return "".join(kept)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    """Ask a process to end, make sure that it has, and return its status and what it wrote to stderr."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    return process.returncode, complaints(errors)


@contextmanager
def simulator(**settings: object) -> Iterator[subprocess.Popen[str]]:
    """A simulator that is ready, with the given fields of `SimConfig`."""
    process = launch(**settings)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", (line, process.communicate(timeout=10)[1], process.returncode)
        yield process
        if process.poll() is None:
            status, errors = end(process)
            assert (status, errors) == (0, "")
    finally:
        end(process)


def run_client(program: str, *, timeout_s: float = 40.0, at_once: bool = False) -> dict[str, object]:
    """Run a client script of the SDK in a process of its own; its last line is JSON.

    With `at_once` it ends right behind that line: the plain SDK's threads, which nothing stops, sometimes
    crash an interpreter that takes itself down.
    """
    ending = "\nimport os\nsys.stdout.flush()\nos._exit(0)\n" if at_once else ""
    done = subprocess.run(
        [sys.executable, "-c", program + ending, str(dds_domain())],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert isinstance(answer, dict)
    return answer
