"""Which files of the package run functions, in this process, while a recording is on.

python -m test.net.called_files KEYS    serve the shipped target, profiled from before its threads start

The program prints its address, then, for each line that it reads, the files of the functions that have run
since the line before.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import vlm_spec_decode
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud import app
from vlm_spec_decode.cloud.config import CloudConfig

PACKAGE = Path(vlm_spec_decode.__file__).parent


class CalledFiles:
    """Profiles this thread and all threads that start after it. What an import calls does not count."""

    def __init__(self) -> None:
        self.is_on = False
        self._found: set[str] = set()
        sys.setprofile(self._on_event)
        threading.setprofile(self._on_event)

    def take(self) -> list[str]:
        """Return the files since the last `take`, relative to the package."""
        found, self._found = self._found, set()
        return sorted(str(Path(name).relative_to(PACKAGE)) for name in found)

    def end(self) -> None:
        """Stop to profile this thread and later ones."""
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _on_event(self, frame: FrameType, event: str, _value: Any) -> None:
        name = frame.f_code.co_filename
        if not self.is_on or event != "call" or name in self._found or not name.startswith(str(PACKAGE)):
            return
        # The bodies of modules and classes are code objects too, but no functions.
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED and not _is_importing(frame):
            self._found.add(name)


def _is_importing(frame: FrameType) -> bool:
    """Tell whether a module's body is being run below this call."""
    caller: FrameType | None = frame
    while caller:
        if caller.f_code.co_filename.startswith("<frozen importlib"):
            return True
        caller = caller.f_back
    return False


def main() -> None:
    """Serve until the input ends."""
    called = CalledFiles()
    config = CloudConfig(
        language=language(True),
        bind="tcp://127.0.0.1:*",
        keys=Path(sys.argv[1]),
        threads=1,
        http="off",
        log_level="error",
    )
    server, operations = app.build(config)
    with operations.running():
        thread = threading.Thread(target=server.serve)
        thread.start()
        sys.stdout.write(f"{server.address}\n")
        sys.stdout.flush()
        for _ in sys.stdin:
            sys.stdout.write(json.dumps(called.take()) + "\n")
            sys.stdout.flush()
            called.is_on = True
        server.stop()
        thread.join(timeout=20)


if __name__ == "__main__":
    main()
