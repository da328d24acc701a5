"""No process is left behind: not after an error, not after signals, not after SIGKILL of the run itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ProcessEnded
from vlm_spec_decode.demo.process_stack import Processes

SLEEPER = 'import time; print(\'{"event": "ready", "port": 7}\', flush=True); time.sleep(60)'
STUBBORN = (
    "import signal, time; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN); " + SLEEPER
)
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); " + SLEEPER


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 30.0) -> bool:
    until = time.monotonic() + within_s
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_alive(pid)


def group(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path, WallClock(), {}) as made:
        yield made


def test_leaving_ends_all_even_after_an_error(tmp_path):
    pids = []

    def run() -> None:
        with Processes(tmp_path, WallClock(), {}) as made:
            pids.extend(made.start(f"p{i}", ["-c", SLEEPER]).popen.pid for i in range(2))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run()
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_children_of_children_end_too(processes):
    process = processes.start("parent", ["-c", PARENT])
    processes.wait_ready(process, 60)
    until = time.monotonic() + 30
    while len(group(process.popen.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(group(process.popen.pid)) == 2
    processes.stop(["parent"])
    assert all(gone(pid) for pid in group(process.popen.pid))


def test_what_ignores_signals_is_killed(processes, monkeypatch):
    monkeypatch.setattr("vlm_spec_decode.demo.process_stack.STOP_S", 0.3)
    process = processes.start("stubborn", ["-c", STUBBORN])
    processes.wait_ready(process, 60)
    processes.stop(["stubborn"])
    assert process.popen.returncode == -signal.SIGKILL


def test_ready_is_read_from_the_output(processes):
    assert processes.wait_ready(processes.start("one", ["-c", SLEEPER]), 20)["port"] == 7


def test_an_early_end_is_named_with_its_last_words(processes):
    process = processes.start("cloud", ["-c", "import sys; print('vsd: port taken'); sys.exit(3)"])
    with pytest.raises(ProcessEnded, match=r"cloud ended with exit code 3: vsd: port taken") as error:
        processes.wait_ready(process, 60)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_nothing(tmp_path, number):
    run = (
        "import sys, time; from pathlib import Path\n"
        "from vlm_spec_decode.core.clock import WallClock\n"
        "from vlm_spec_decode.demo.process_stack import Processes\n"
        f"with Processes(Path({str(tmp_path)!r}), WallClock(), {{}}) as made:\n"
        f"    started = made.start('one', ['-c', {SLEEPER!r}])\n"
        "    made.wait_ready(started, 60)\n"
        "    print(started.popen.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", run], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        try:
            child = int(parent.stdout.readline())
            assert is_alive(child)
            os.kill(parent.pid, number)
            parent.wait(30)
        finally:
            parent.kill()
    assert gone(child)
