"""A process that others must not starve: its priority, and how soon its threads give way to one another.

Where many processes compute, a stop that comes waits until its process gets a core, which may take longer
than everything else about it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vlm_spec_decode.core.config import Setting

PARAMETER = Setting(
    "nice",
    -10,
    "Priority that the process gives itself where the system lets it, so that no stop waits for a busy "
    "computer; 0: as it was started.",
    -20,
    0,
)

SWITCH_S = 0.001
"""After which a thread must give way to another that waits; Python's own 5 ms add up along a stop."""

THREADS = Path("/proc/self/task")


def hurry(nice: int) -> str:
    """Give all threads of this process at least this priority; return "", or why that is not allowed."""
    sys.setswitchinterval(SWITCH_S)
    if nice == 0 or not THREADS.is_dir() or os.getpriority(os.PRIO_PROCESS, 0) <= nice:
        return ""
    # Linux keeps a priority for each thread; those to come inherit it.
    for thread in THREADS.iterdir():
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
        except ProcessLookupError:
            continue  # it has ended meanwhile
        except PermissionError:
            return f"not allowed to give itself nice {nice}, so stops wait for a busy computer"
    return ""
