"""A cloud under `ulimit -n 64` and more robots than that is enough for: who is served stays served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from test.net.test_service import PATIENT_S, eventually
from test.net.test_sockets import CLOCK, HELLO, decode, own_answer
from test.tables import TARGET, TableModel
from vlm_spec_decode.core.errors import CloudUnreachable, ConfigError
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport import connection, keys
from vlm_spec_decode.transport.dealer import DealerLink

pytestmark = pytest.mark.net

PARAMS = SamplingParams(temperature=1.0, max_tokens=8, seed=3)


def serve(folder: str) -> None:
    """Serve a table until standard input ends, then print what was dropped. Runs in a process of its own."""
    import threading

    from vlm_spec_decode.cloud.protocol import ServerProtocol
    from vlm_spec_decode.cloud.server import CloudServer
    from vlm_spec_decode.transport.router import RouterLink

    target = TableModel(TARGET)
    link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(Path(folder)) if folder else None)
    server = CloudServer(link, ServerProtocol(target.card, "grammar"), target, CLOCK)
    thread = threading.Thread(target=server.serve)
    thread.start()
    sys.stdout.write(json.dumps({"address": server.address}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop()
    thread.join()
    sys.stdout.write(json.dumps(dict(link.access.dropped)) + "\n")


@contextmanager
def child(folder: str, limit: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    code = f"from test.net.test_few_descriptors import serve; serve({folder!r})"
    command = ["bash", "-c", f'ulimit -n {limit} && exec "$0" "$@"', sys.executable, "-c", code]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, env={**os.environ}, **pipes) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline() or "{}").get("address", ""), process
        finally:
            process.kill()


def refusal(robot: RemoteVerifier, timeout_s: float) -> str:
    """Connect; return why that was not possible, "" if it was."""
    try:
        robot.connect(timeout_s=timeout_s)
    except CloudUnreachable as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("limit", "is_encrypted"), [(64, True), (48, False)], ids=["curve", "plain"])
def test_who_is_served_stays_served(key_folder: Path, limit: int, is_encrypted: bool) -> None:
    folder = key_folder if is_encrypted else None
    robots: list[RemoteVerifier] = []

    def connected(timeout_s: float) -> str:
        link = DealerLink(address, keys.edge_keys(folder) if folder else None, CLOCK)
        robots.append(RemoteVerifier(link, HELLO, CLOCK))
        return refusal(robots[-1], timeout_s)

    with child(str(folder or ""), limit) as (address, process), ThreadPoolExecutor(limit) as pool:
        try:
            why = next(why for _ in range(limit) if (why := connected(3.0)))
            assert "takes no more connections" in why
            served = robots[:-1]
            assert len(served) > 8
            assert all(connected(0.01) for _ in range(12))
            for answer in (1, 2):
                for robot in served:
                    assert decode(robot, "autoregressive", PARAMS, answer) == own_answer(PARAMS)
                CLOCK.sleep(0.6)  # the keys are read again meanwhile
            assert process.poll() is None
            crowd = [robot for robot in robots if robot not in served]
            list(pool.map(RemoteVerifier.disconnect, [served[0], *crowd]))
            eventually(lambda: not connected(3.0))
        finally:
            list(pool.map(RemoteVerifier.disconnect, robots))
        out, err = process.communicate("", timeout=PATIENT_S)
    assert json.loads(out)["no_descriptors"] > 0
    assert f"the limit of {limit} file descriptors leaves room for" in err
    assert "robots are turned away" in err
    assert err.count("turned away") <= 4


def test_a_cloud_that_could_serve_nobody_says_so(key_folder: Path) -> None:
    with child(str(key_folder), 30) as (address, process):
        assert not address
        assert "ConfigError: a cloud needs" in process.communicate(timeout=PATIENT_S)[1]


def test_a_robot_without_descriptors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq would end the process."""
    monkeypatch.setattr(connection, "free_descriptors", lambda: 5)
    with pytest.raises(ConfigError, match=r"24 file descriptors and 5 of .* are left: raise `ulimit -n`"):
        DealerLink("tcp://127.0.0.1:5555", None, CLOCK)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (50, 200));"
        "from vlm_spec_decode.transport import connection as d;"
        "print(d.descriptor_limit(), r.getrlimit(r.RLIMIT_NOFILE), 180 < d.free_descriptors() < 200)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "200 (200, 200) True\n"
