"""A terminal with an interactive shell, as a user has one: what is typed goes through a pseudo terminal."""

import os
import pty
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ("PATH", "HOME", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")
"""What a user's shell has of this process's environment."""
PROMPT = re.compile(r"\[(\d+)\]ready> ")
PATIENCE_S = 120.0


class Terminal:
    """One shell. `screen` is all that it has shown."""

    def __init__(self, folder: Path) -> None:
        self._master, slave = pty.openpty()
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"TERM": "dumb", "PS1": "[$?]ready> ", "PYTHONPATH": str(ROOT)}
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"],
            stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment,
        )  # fmt: skip
        os.close(slave)
        self.screen = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("ready> ")

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the shell has ended
                return
            self.screen += data.decode(errors="replace").replace("\r", "")

    def type(self, text: str) -> None:
        """Type text; a line that ends is carried out."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows a text. Raises AssertionError with the screen."""
        self._wait(lambda: text in self.screen, text)

    def run(self, line: str) -> int:
        """Carry out one line and return its exit code."""
        before = len(PROMPT.findall(self.screen))
        self.type(f"{line}\n")
        self._wait(lambda: len(PROMPT.findall(self.screen)) > before, line)
        return int(PROMPT.findall(self.screen)[-1])

    def interrupt(self) -> None:
        """Press Ctrl-C and wait for the prompt."""
        before = len(PROMPT.findall(self.screen))
        self.type("\x03")
        self._wait(lambda: len(PROMPT.findall(self.screen)) > before, "the prompt after Ctrl-C")

    def _wait(self, done, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, f"nothing of {what!r} on\n{self.screen[-3000:]}"
            time.sleep(0.02)

    def close(self) -> None:
        """End the shell and what it still runs."""
        if self._shell.poll() is None:
            for group in {*_groups_of(self._shell.pid), self._shell.pid}:
                os.killpg(group, signal.SIGKILL)
        self._shell.wait(10)
        os.close(self._master)


def _groups_of(session: int) -> set[int]:
    """Return the process groups of a session."""
    command = ["ps", "-o", "pgid=", "-s", str(session)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {int(word) for word in said.split()}
