"""Unauthorised clients, malformed frames and a hostile link: the attacks of benchmarks/service.py."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import zmq
from figures import ROOT, Figure
from service_cloud import HELLO, HashModel
from service_faults import cloud
from service_robot import Asking, footprint
from tqdm import tqdm

from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.types import AnswerRequest, Image, Observation, SamplingParams
from vlm_spec_decode.demo.process_stack import Processes
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.transport.keys import EdgeKeys, add_robot, cloud_keys, edge_keys, generate
from vlm_spec_decode.transport.router import RouterLink

SEED = 11
AT_ONCE = 50
RUNS_PER_BATCH = 200
"""Runs of the hostile link that share a seed and a process."""


def link_runs(runs: int) -> list[Figure]:
    """Runs of the state machine of test/protocol/test_hostile_link.py, on all cores."""
    batches = [
        (seed, min(RUNS_PER_BATCH, runs - start)) for seed, start in enumerate(range(0, runs, RUNS_PER_BATCH))
    ]
    bar = tqdm(total=runs, desc="runs", disable=None, leave=False)
    violations = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool, bar:
        for (_, count), violation in zip(batches, pool.map(_run_batch, batches), strict=True):
            bar.update(count)
            violations += [violation] if violation else []
    for violation in violations:
        print(f"hostile link: {violation}", file=sys.stderr)
    note = f"{runs} runs of up to 40 steps, {len(batches)} seeds"
    return [Figure("hostile_link_violations", len(violations), 0, "at most", note)]


def _run_batch(batch: tuple[int, int]) -> str:
    """Run a batch with one seed; return what was violated, "" if nothing."""
    sys.path.insert(0, str(ROOT))
    from hypothesis import HealthCheck, seed, settings
    from hypothesis.stateful import run_state_machine_as_test

    from test.protocol.test_hostile_link import HostileLink

    number, runs = batch
    checks = list(HealthCheck)
    count = settings(
        max_examples=runs, stateful_step_count=40, deadline=None, database=None, suppress_health_check=checks
    )
    try:
        run_state_machine_as_test(seed(number)(HostileLink), settings=count)
    except Exception as error:  # noqa: BLE001  any exception is a violation
        return f"seed {number}: {type(error).__name__}: {error}"
    return ""


def malformed(processes: Processes, folder: Path, frames: int) -> list[Figure]:
    """Malformed frames of an authorised robot, while another one asks."""
    keys = folder / "malformed"
    generate(keys)
    add_robot(keys, "harm")
    process, address = cloud(processes, "malformed", keys, "tcp://127.0.0.1:*", "--open-door")
    good = Asking(address, keys, max_tokens=8, pause_s=0.02).start()
    harm = edge_keys(keys / "robots" / "harm")
    _flood(address, harm, frames // 10)
    before = footprint(process.popen.pid)
    _flood(address, harm, frames - frames // 10)
    after = footprint(process.popen.pid)
    outcomes = good.stop()
    crashes = int(process.popen.poll() is not None)
    processes.stop(["malformed"])
    growth = after.resident_bytes / before.resident_bytes - 1
    bad = sum(outcomes.values()) - outcomes["right"]
    note = f"{frames} frames; the other robot: {outcomes['right']} answers right, {bad} not"
    return [
        Figure("malformed_crashes", crashes + bad, 0, "at most", note),
        Figure("malformed_memory_growth", growth, 0.02, "at most", f"from {frames // 10} frames on"),
    ]


def _flood(address: str, keys: EdgeKeys, frames: int) -> None:
    rng = random.Random(SEED)
    pool = [_harm(rng) for _ in range(4000)]
    context = zmq.Context()
    socket = _dealer(context, address, keys)
    socket.send(codec.encode(HELLO))
    reader = threading.Event()
    for count in tqdm(range(frames), desc="frames", disable=None, leave=False):
        socket.send(pool[count % len(pool)])
        while socket.poll(0):
            socket.recv()
    # A Ping is answered in turn: when its echo comes, all before it has been taken.
    socket.send(codec.encode(HELLO))
    socket.send(codec.encode(wire.Ping(77, 0, 0, 0, False)))
    until_s = time.monotonic() + 120
    while not reader.is_set() and time.monotonic() < until_s:
        if socket.poll(1000):
            message = codec.decode(socket.recv())
            if isinstance(message, wire.Pong) and message.stamp_us == 77:
                reader.set()
    socket.close(0)
    context.term()
    if not reader.is_set():
        raise SystemExit("the cloud did not answer after the flood")


def _harm(rng: random.Random) -> bytes:
    """Return random bytes, or a message of each kind with bytes changed, cut off or repeated."""
    if rng.random() < 0.3:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200)))
    packer = codec.TokenPacker(HELLO.vocab_size)
    image = Image(bytes(1000), 64, 64) if rng.random() < 0.5 else None
    params = SamplingParams(max_tokens=rng.randrange(1, 4096), seed=rng.randrange(1 << 30))
    request = AnswerRequest(
        rng.randrange(1, 50), Observation(image, "x" * rng.randrange(1, 900)), params, "hybrid"
    )
    answer, epoch = request.answer, rng.randrange(3)
    kinds: list[wire.AnyMessage] = [
        codec.open_message(request, packer, epoch, (1, 2, 3)),
        wire.ImageChunk(answer, epoch, rng.randrange(2000), bytes(rng.randrange(4096))),
        wire.WireDraft(answer, epoch, rng.randrange(9), rng.randrange(1, 9), bytes(2 * rng.randrange(256))),
        wire.Ping(1, answer, epoch, rng.randrange(9), True),
        wire.WireCorrection(answer, epoch, 3, 5),
        wire.Close(answer, epoch),
        wire.Welcome("x", "y", 1, (), 1, 1, ()),
        HELLO,
    ]
    data = bytearray(codec.encode(rng.choice(kinds)))
    for _ in range(rng.randrange(4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.3 else data)


def strangers(folder: Path, attempts: int) -> list[Figure]:
    """Attempts to get service with a key that is not authorised, with none, or with the cloud's own."""
    keys = folder / "strangers"
    generate(keys)
    server_keys = cloud_keys(keys)
    target = HashModel(0.0)
    link = RouterLink("tcp://127.0.0.1:*", server_keys)
    server = CloudServer(link, ServerProtocol(target.card, HELLO.grammar_digest), target, WallClock())
    thread = threading.Thread(target=server.serve)
    thread.start()
    served = 0
    groups = range(0, attempts, AT_ONCE)
    try:
        for start in tqdm(groups, desc="strangers", unit=f"{AT_ONCE} ", disable=None, leave=False):
            served += _count_served(server.address, edge_keys(keys), min(AT_ONCE, attempts - start), start)
        reached = server.protocol.stats.messages - len(groups)
    finally:
        server.stop()
        thread.join()
    note = f"{attempts} attempts, {reached} of their messages reached the server; "
    note += f"{len(groups)} friends among them served"
    return [Figure("strangers_served", served + reached, 0, "at most", note)]


def _count_served(address: str, friend: EdgeKeys, count: int, first: int) -> int:
    """Send Hello from unauthorised clients, and from a friend after them; return how many got an answer.

    They have until the friend gets its Welcome, and the same time again.
    """
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    started_s = time.monotonic()
    sockets = [_dealer(context, address, _unauthorised_keys(friend, first + index)) for index in range(count)]
    known = _dealer(context, address, friend)
    poller = zmq.Poller()
    for socket in (*sockets, known):
        socket.send(codec.encode(HELLO))
        poller.register(socket, zmq.POLLIN)
    if not known.poll(60_000):
        raise SystemExit("the cloud does not welcome a friend among strangers")
    time.sleep(max(0.2, time.monotonic() - started_s))
    answered = [socket for socket, _ in poller.poll(0) if socket is not known]
    for socket in (*sockets, known):
        socket.close(0)
    context.term()
    return len(answered)


def _unauthorised_keys(friend: EdgeKeys, index: int) -> EdgeKeys | None:
    """Return keys that are not authorised; None, so no encryption, for every fourth client."""
    return EdgeKeys(*zmq.curve_keypair(), friend.cloud_public) if index % 4 else None


def _dealer(
    context: zmq.Context[zmq.Socket[bytes]], address: str, keys: EdgeKeys | None
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IDENTITY, b"\x01" + os.urandom(12))
    if keys:
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        socket.curve_serverkey = keys.cloud_public
    socket.connect(address)
    return socket
