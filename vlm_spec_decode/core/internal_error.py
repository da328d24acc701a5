"""The last handler of a program: an unexpected exception ends in one line with the path of its traceback.

Whatever arrives here is a bug, or an error of a library that needs a named error of its own.
"""

from __future__ import annotations

import os
import stat
import sys
import time
import traceback
from pathlib import Path


def scratch_folder(name: str) -> Path | None:
    """Return a folder of this user's own in the temporary folder; None if there is no place to write.

    A folder of this name that belongs to another user is not used.
    """
    import tempfile

    try:
        folder = Path(tempfile.gettempdir(), f"vsd-{name}-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            return folder
    except OSError:
        pass
    try:
        return Path(tempfile.mkdtemp(prefix=f"vsd-{name}-"))
    except OSError:
        return None


SHOW = "VSD_TRACEBACK"
"""Set to 1: tracebacks go to stderr as well."""


def describe_internal_error(error: BaseException) -> str:
    """Return one line about `error`; its traceback goes to a file, and to stderr if `SHOW` asks for it."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get(SHOW, "") not in ("", "0"):
        sys.stderr.write(text)
    path = _save(text)
    where = f"traceback in {path}" if path else f"{SHOW}=1 shows its traceback"
    message = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {message} (a fault of this program; {where})" if message else f"{kind} ({where})"


def _save(text: str) -> Path | None:
    folder = scratch_folder("faults")
    if folder is None:
        return None
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return path
