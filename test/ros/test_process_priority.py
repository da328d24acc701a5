"""A process raises its own priority where it may; in a child, which could not lower it again."""

import subprocess
import sys

import pytest

CODE = """
import os, threading
from vlm_spec_decode.ros.nodes.locomotion import raise_priority
os.nice(3)
threading.Thread(target=threading.Event().wait, daemon=True).start()
def priorities():
    return sorted({os.getpriority(os.PRIO_PROCESS, int(name)) for name in os.listdir("/proc/self/task")})
print(raise_priority(0), priorities())
said = raise_priority(-10)
print(said, priorities(), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux keeps one per thread")
def test_all_threads_get_the_priority_or_it_is_said_why_not():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=100)
    before, after = done.stdout.splitlines()
    assert before.startswith(" ["), "zero leaves it as it was"
    assert after == " [-10]" or ("not allowed" in after and after.endswith(before)), done.stderr
