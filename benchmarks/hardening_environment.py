"""Every command and node under the shells, files and words of real users: never a traceback, never silence.

    python benchmarks/hardening_environment.py [--quick] [--only WORD]

Each case is a process of its own, two at a time, on ROS domains of its own. A case fails if a traceback is
seen, nothing is said, the exit code is not one that the docs give, a JSON line is missing where it was asked
for, or the e-stop did not arrive at the service that waits for it. `--quick` takes every fourth case.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment_cases import NODE, STOP, Case, Text, cases  # noqa: E402
from benchmarks.figures import Figure, report  # noqa: E402

TIMEOUT_S = 120.0
UP_S = 8.0
"""Time after which a running node is interrupted."""

AT_ONCE = 2
QUICK_STEP = 4
ROBOT_DOMAIN, OTHER_DOMAIN = 91, 92

ROBOT = """
import sys
import rclpy
from std_srvs.srv import SetBool
rclpy.init(args=[])
node = rclpy.create_node("locomotion_node")
def engage(request, response):
    response.success, response.message = bool(request.data), "stopped"
    return response
node.create_service(SetBool, "e_stop", engage)
print("ready", flush=True)
rclpy.spin(node)
"""
"""Serves the e-stop as the locomotion node does, which shows whether a stop has arrived."""


def figures(quick: bool) -> list[Figure]:
    """Run the matrix; return the number of cases that fail, and how many were run."""
    failed, count = run(quick)
    note = "; ".join(f"{name}: {why}" for name, why in failed[:5])
    return [
        Figure("environment_failures", len(failed), 0, "at most", note or f"of {count} cases"),
        Figure("environment_cases", count, 50 if quick else 120, "at least"),
    ]


def run(quick: bool, only: str = "") -> tuple[list[tuple[str, str]], int]:
    """Return the failed cases with what is wrong, and the number of cases."""
    with tempfile.TemporaryDirectory(prefix="vsd-shell-") as made:
        folder = Path(made)
        all_cases = [case for case in cases(folder) if only in case.name]
        chosen = [c for i, c in enumerate(all_cases) if not quick or i % QUICK_STEP == 0]
        with _Robot(folder), ThreadPoolExecutor(AT_ONCE) as pool:
            problems = list(pool.map(lambda case: problem(case, folder), chosen))
    failed = [(case.name, why) for case, why in zip(chosen, problems, strict=True) if why]
    return failed, len(chosen)


def problem(case: Case, folder: Path) -> str:
    """Run a case; return what is wrong with how it ended, "" if nothing is."""
    code, out, err = _process(case, folder)
    output = out + err
    if "Traceback (most recent call last)" in output:
        return f"traceback: {output.strip().splitlines()[-1][:200]}"
    if code not in case.codes:
        last = (output.strip().splitlines() or ["nothing"])[-1][:200]
        return f"exit code {code} instead of {' or '.join(map(str, case.codes))}: {last}"
    # A node that ran until it was interrupted need not print anything.
    if not output.strip() and case.ends_by_itself:
        return "silence"
    if "InternalError" in output:
        return f"no name of its own: {output.strip().splitlines()[-1][:200]}"
    return _json_problem(case, code, out)


def _json_problem(case: Case, code: int, out: str) -> str:
    if not case.wants_json:
        return ""
    try:
        document = json.loads((out.strip().splitlines() or [""])[-1])
    except ValueError:
        return f"no JSON line at the end: {out.strip()[-120:]!r}"
    if "error" in document and document.get("exit_code") != code:
        return f"JSON says exit code {document.get('exit_code')}, the process {code}"
    if case.kind == STOP and document.get("ok") is not True:
        return "the stop did not arrive"
    return ""


def _process(case: Case, folder: Path) -> tuple[int, str, str]:
    command: list[Text] = [sys.executable]
    if case.kind == NODE:
        command += [str(ROOT / "nodes" / str(case.arguments[0])), *case.arguments[1:]]
    else:
        command += ["-m", "vlm_spec_decode.cli", *case.arguments]
    process = subprocess.Popen(
        [os.fsencode(part) for part in command],
        env=_environment(case.environment, ROBOT_DOMAIN if case.kind == STOP else OTHER_DOMAIN),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    if not case.ends_by_itself:
        threading.Timer(UP_S, _interrupt, [process]).start()
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)


def _environment(changes: Mapping[str, Text | None], domain: int) -> dict[bytes, bytes]:
    """Return a clean shell's environment with these changes."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("ROS_", "RMW_", "FASTDDS"))
    }
    kept |= {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }
    path = [str(ROOT)]
    if changes.get("PYTHONPATH"):
        path.insert(0, str(changes["PYTHONPATH"]))
    found: dict[bytes, bytes] = {os.fsencode(key): os.fsencode(value) for key, value in kept.items()}
    for key, value in changes.items():
        if value is None:
            found.pop(os.fsencode(key), None)
        else:
            found[os.fsencode(key)] = os.fsencode(value)
    return found | {b"PYTHONPATH": os.fsencode(os.pathsep.join(path))}


class _Robot:
    """The process that serves the e-stop while the cases run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        command = [sys.executable, "-c", ROBOT]
        environment = _environment({}, ROBOT_DOMAIN)
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, cwd=self._folder, start_new_session=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def main() -> int:
    """Run and report; the exit code is 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="Cases whose name holds this word, with what is wrong.")
    options = parser.parse_args()
    if options.only:
        failed, count = run(False, options.only)
        for name, why in failed:
            print(f"{name}: {why}")
        print(f"{len(failed)} of {count} fail")
        return 1 if failed else 0
    began = time.monotonic()
    found = figures(options.quick)
    return report(found, ROOT / "out" / "hardening" / "environment.json", seconds=time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
