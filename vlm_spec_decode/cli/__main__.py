"""Where the command `vsd` begins and ends, as `python -m vlm_spec_decode.cli` does.

Ctrl-C ends a command with 130 and one line, whenever it comes: while the command's own modules are imported,
which takes a second on a small computer, and while the interpreter goes away, a KeyboardInterrupt is a
traceback, an exit by signal, or lost in a callback. Nothing has begun or everything has ended there, so that
the process can end at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

INTERRUPTED = 130


def run() -> int:
    """Run the command of `sys.argv` and return its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return _main()  # ignored, as in a shell's background job
    # Registered first, and so called last: from there on Python restores the signal's own effect.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _end_before_it_began)
    import vlm_spec_decode.cli.main  # noqa: F401 - what takes long

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _main()
    except KeyboardInterrupt:  # before or after `main` reports it by itself
        _say_interrupted()
        code = INTERRUPTED
    if sys.stdout:
        with suppress(OSError):
            sys.stdout.flush()

    def end(_number: int, _frame: FrameType | None) -> None:
        os._exit(code)

    # Threads of libraries may keep the process for a while; its result is known.
    signal.signal(signal.SIGINT, end)
    return code


def _main() -> int:
    from vlm_spec_decode.cli.main import main

    return main()


def _end_before_it_began(_number: int, _frame: FrameType | None) -> None:
    """End the process without unwinding what is half imported."""
    _say_interrupted()
    os._exit(INTERRUPTED)


def _say_interrupted() -> None:
    with suppress(OSError):
        os.write(2, b"\nvsd: interrupted\n")
        if "--json" in sys.argv:
            os.write(1, b'{"error": "Interrupted", "message": "interrupted", "exit_code": 130}\n')


if __name__ == "__main__":
    sys.exit(run())
