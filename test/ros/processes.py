"""Processes of one test: each in a group of its own, its output in a file, all ended whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from test.ros import NAMESPACE

ROOT = Path(__file__).parents[2]
NODES = ROOT / "nodes"
CLOSE_S = 30.0


class Processes:
    def __init__(self, folder, **environment):
        self.folder = folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
        self.running = {}

    def start(self, name, *arguments):
        """Start `python ARGUMENTS` and return the process."""
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )
        self.running[name] = process
        return process

    def vsd(self, name, *arguments):
        return self.start(name, "-m", "vlm_spec_decode.cli", *arguments)

    def node(self, name, **parameters):
        options = [option for key, value in parameters.items() for option in ("-p", f"{key}:={value}")]
        return self.start(name, NODES / name, "--ros-args", "-r", f"__ns:={NAMESPACE}", *options)

    def output(self, name):
        return (self.folder / f"{name}.log").read_text()

    def story(self):
        """Return who still runs and the end of what each has said."""
        lines = []
        for name, process in self.running.items():
            lines.append(f"== {name}: exit code {process.poll()}")
            lines += self.output(name).splitlines()[-15:]
        return "\n".join(lines)

    def pause(self, name, duration_s):
        """Let a process stand still for a while, as a busy computer does."""
        group = self.running[name].pid
        os.killpg(group, signal.SIGSTOP)
        time.sleep(duration_s)
        os.killpg(group, signal.SIGCONT)

    def interrupt(self, name, number=signal.SIGINT, timeout_s=CLOSE_S):
        """Send a signal and return the exit code."""
        process = self.running[name]
        process.send_signal(number)
        return process.wait(timeout_s)

    def close(self):
        for process in reversed(self.running.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        deadline = time.monotonic() + CLOSE_S
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
