"""A folder for what has nowhere else to go: logs without a home, the traceback of a fault of ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def scratch_folder(name: str) -> Path | None:
    """Return a folder of this user's own in the temporary folder; None if there is no place to write.

    What another user has put there under this name is passed by.
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
