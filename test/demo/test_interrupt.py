"""Ctrl-C in the middle of a demo: the robot is stopped, nothing runs on, the exit code says so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.dds, pytest.mark.ros]


def descendants(mark: str) -> list[int]:
    """Processes whose command line or environment carries `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if mark.encode() in told and state != "Z" and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


@pytest.mark.timeout(150)
def test_ctrl_c_while_the_robot_walks(tmp_path):
    mark = f"VSD_TEST_RUN={tmp_path.name}{os.getpid()}"
    name, value = mark.split("=")
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "demo", "--out", str(tmp_path), "--json"]
    demo = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, name: value}
    )
    try:
        for line in demo.stderr:
            if "    > " in line:  # the first action is under way
                break
        assert len(descendants(mark)) >= 6
        demo.send_signal(signal.SIGINT)
        rest, trouble = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130
    assert json.loads(rest.splitlines()[-1])["exit_code"] == 130
    assert "Traceback" not in trouble
    until = time.monotonic() + 30
    while descendants(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert descendants(mark) == []
    for log in (tmp_path / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log.name
