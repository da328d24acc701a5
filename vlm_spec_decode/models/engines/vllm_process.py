"""The process that runs vLLM: started, watched, and started again if it ends.

One question goes over the pipe at a time. Whoever waits for an answer is told by an `EngineStopped` if the
process ends or says nothing for `HANGS_S`. It is then started anew, and answers under way are read again from
their committed tokens. A thread waits for its end, so that it is noticed when nobody asks, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence as Seq
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

import vlm_spec_decode
from vlm_spec_decode.core.errors import EngineStopped, ModelError
from vlm_spec_decode.core.load_progress import Load, current_load
from vlm_spec_decode.models.checkpoint import TENSORS
from vlm_spec_decode.models.engines import vllm_messages as wire
from vlm_spec_decode.models.engines.vllm_torchvision import SITECUSTOMIZE

log = logging.getLogger(__name__)

PYTHON_VARIABLE = "VSD_VLLM_PYTHON"
PYTHON = Path(".venv-vllm") / "bin" / "python"
"""Where `make setup-vllm` puts the interpreter, below the folder of this repository or the current one."""

VERSION = "0.32."
"""What vLLM's version must begin with: `vllm_host` changes inner parts of it."""

START_S = 1800.0
"""Loading may take as long, for a large checkpoint on a slow disk."""

HANGS_S = 120.0
"""A pass that takes longer will never end: the process is killed."""

ENDS_S = 2.0
"""A process that has closed its pipe ends within this time by itself."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between two attempts to start the process again."""

_ENDED = "vLLM's process has ended"

_SERVES = "from vlm_spec_decode.models.engines.vllm_host import main; main()"
_ASKS_VERSION = (
    "from importlib.metadata import version as v, packages_distributions as p; print(v(p()['vllm'][0]))"
)


def find_python() -> Path:
    """Return the interpreter of vLLM's environment. Raises ModelError if there is none."""
    if named := os.environ.get(PYTHON_VARIABLE):
        if not Path(named).is_file():
            raise ModelError(f"{PYTHON_VARIABLE} is {named}, which is no file")
        return Path(named).absolute()
    for folder in (Path(vlm_spec_decode.__file__).parents[1], Path.cwd()):
        if (folder / PYTHON).is_file():
            # Not resolved: a virtual environment is known by the place of its link.
            return (folder / PYTHON).absolute()
    raise ModelError(
        f"vLLM has an environment of its own, which is not there: make setup-vllm, or set {PYTHON_VARIABLE}"
    )


def check_version(python: Path) -> str:
    """Return vLLM's version in an environment. Raises ModelError for one that has none or another one."""
    asked = subprocess.run([python, "-c", _ASKS_VERSION], capture_output=True, text=True, check=False)
    found = asked.stdout.strip()
    if asked.returncode:
        raise ModelError(f"{python} has no vLLM: make setup-vllm")
    if not found.startswith(VERSION):
        raise ModelError(f"{python} has vLLM {found}; this version of the package works with {VERSION}x")
    return found


class VllmProcess:
    """One checkpoint in vLLM. `life` counts the processes: what an answer had in an earlier one is gone."""

    def __init__(self, load: wire.LoadCheckpoint) -> None:
        self._python = find_python()
        check_version(self._python)
        self._writing = threading.Lock()
        self._ending = threading.Lock()
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._reason = _ENDED
        self._package = tempfile.TemporaryDirectory(prefix="vsd-vllm-")
        # Our package alone, and nothing else of this environment, which has other versions of libraries.
        folder = Path(self._package.name)
        (folder / "vlm_spec_decode").symlink_to(Path(vlm_spec_decode.__file__).parent)
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        # vLLM takes every file of tensors for a part of the network; ours of the early exits is none.
        for file in Path(load.folder).iterdir():
            if file.stem != "exits":
                (checkpoint / file.name).symlink_to(file.absolute())
        self._load = msgspec.structs.replace(load, folder=str(checkpoint))
        self.life = 0
        self.token_bytes = 0

    @property
    def pid(self) -> int | None:
        """Process id, also while it loads the checkpoint; None between two processes."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Whether there is a process with the checkpoint loaded."""
        return self._connection is not None

    def start(self) -> None:
        """Start the process and wait until the checkpoint is loaded. Raises ModelError, OSError."""
        load = current_load()
        files = Path(self._load.folder).glob("*.safetensors")
        load.total_bytes, load.shares[TENSORS] = sum(file.stat().st_size for file in files), 0.0
        ours, theirs = socket.socketpair()
        # A process that hangs reads nothing: who writes to it must not wait for ever either.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(HANGS_S), 0))
        connection = Connection(ours.detach())
        process = None
        try:
            with theirs:
                process = self._spawn(theirs.fileno())
            connection.send_bytes(wire.encode(self._load))
            ready = _await_ready(connection, load)
        except BaseException as error:
            connection.close()
            if process is None:
                raise
            with self._writing:
                self._process = None
            _kill(process)
            code = process.wait()
            if isinstance(error, EOFError | OSError | msgspec.MsgspecError):
                raise ModelError(
                    f"vLLM's process ended with code {code} while it loaded the checkpoint"
                ) from None
            raise
        self.token_bytes = ready.token_bytes
        with self._writing:
            self._connection = connection
            self.life += 1
            life = self.life
        if self._closed.is_set():
            self.close()
        threading.Thread(target=self._watch, args=(process, life), name="vsd-vllm-watch", daemon=True).start()

    def check(self) -> None:
        """Raise EngineStopped unless the process runs."""
        if not self.is_running:
            raise EngineStopped(f"{self._reason}; it is being started again")

    def run(self, rows: Seq[wire.Rows], life: int) -> tuple[wire.Said, ...]:
        """Run one pass. Raises EngineStopped if the process is not that of `life`, ends, or hangs."""
        connection = self._connection
        if connection is None or life != self.life:
            self.check()
            raise EngineStopped("vLLM's process was started again")
        try:
            self._send(connection, wire.Pass(tuple(rows)))
            if not connection.poll(HANGS_S):
                raise EngineStopped(self._ended(life, f"it has said nothing for {HANGS_S:.0f} s"))
            answer = wire.from_engine.decode(connection.recv_bytes())
        except BlockingIOError:
            raise EngineStopped(self._ended(life, f"it has read nothing for {HANGS_S:.0f} s")) from None
        except (EOFError, OSError, msgspec.MsgspecError):
            raise EngineStopped(self._ended(life)) from None
        if isinstance(answer, wire.Refusal):
            raise EngineStopped(self._ended(life, answer.reason))
        assert isinstance(answer, wire.Passed)
        return answer.said

    def tell(self, message: wire.Forget | wire.Close, life: int) -> None:
        """Send what has no answer; nothing if it is for an earlier process."""
        connection = self._connection
        if connection is not None and life == self.life:
            with contextlib.suppress(OSError):
                self._send(connection, message)

    def close(self) -> None:
        """End the process. Idempotent."""
        self._closed.set()
        with self._writing:
            connection, self._connection = self._connection, None
            process, self._process = self._process, None
        if connection is not None:
            connection.close()
        if process is not None:
            _kill(process)
            process.wait()
        self._package.cleanup()

    def _spawn(self, pipe: int) -> subprocess.Popen[bytes]:
        """Start the process, which `close` kills from now on. Raises OSError, ModelError after `close`."""
        with self._writing:
            if self._closed.is_set():
                raise ModelError("vLLM's process has been closed")
            self._process = subprocess.Popen(
                [self._python, "-c", _SERVES, str(pipe), self._package.name, str(os.getpid())],
                pass_fds=(pipe,),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                # A group of its own: Ctrl-C is for the cloud, which lets answers end.
                start_new_session=True,
            )
            return self._process

    def _watch(self, process: subprocess.Popen[bytes], life: int) -> None:
        process.wait()
        self._ended(life)

    def _send(self, connection: Connection, message: wire.ToEngine) -> None:
        with self._writing:
            connection.send_bytes(wire.encode(message))

    def _ended(self, life: int, why: str = "") -> str:
        """Note that the process has ended, and start another one; return what to say of it.

        Who waits for an answer and who watches the process come here at the same time: one does the work, and
        the other one then knows as much.
        """
        with self._ending:
            with self._writing:
                if life != self.life or self._process is None or self._connection is None:
                    return self._reason
                process, self._process = self._process, None
                # Not closed here: another thread may read from it. It ends with the last that knows it.
                self._connection = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_S)  # so that its own exit code is told
            _kill(process)
            self._reason = _reason(process.wait(), why)
            log.error("%s; it is started again", self._reason)
            threading.Thread(target=self._start_again, name="vsd-vllm-start", daemon=True).start()
            return self._reason

    def _start_again(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closed.wait(pause_s):
            began_s = time.monotonic()
            try:
                self.start()
            except (ModelError, OSError) as error:
                if not self._closed.is_set():
                    log.error("vLLM does not start: %s", error)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                continue
            log.warning("vLLM runs again after %.0f s", time.monotonic() - began_s)
            return

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            **kept,
            "PYTHONPATH": self._package.name,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "HF_HUB_OFFLINE": "1",
        }


def _reason(code: int, why: str) -> str:
    return f"{_ENDED}: {why or (f'signal {-code}' if code < 0 else f'code {code}')}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with those that it has started, one a GPU."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _await_ready(connection: Connection, load: Load) -> wire.Ready:
    """Wait until the checkpoint is loaded. Raises ModelError; EOFError if the process ends."""
    until_s = time.monotonic() + START_S
    while connection.poll(max(0.0, until_s - time.monotonic())):
        message = wire.from_engine.decode(connection.recv_bytes())
        match message:
            case wire.Progress():
                load.advance(TENSORS, message.share)
            case wire.Ready():
                return message
            case wire.Refusal():
                raise ModelError(f"vLLM cannot load it: {message.reason}")
    raise ModelError(f"vLLM has not loaded the checkpoint within {START_S:.0f} s")
