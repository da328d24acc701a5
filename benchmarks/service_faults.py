"""Clouds that are killed, and one that serves for long: the cases of benchmarks/service.py with processes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from figures import Figure
from service_robot import Asking, ask, footprint, robot
from tqdm import tqdm

from vlm_spec_decode.demo.process_stack import ChildProcess, Processes
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.transport.keys import generate

CLOUD = Path(__file__).with_name("service_cloud.py")
START_S = 60.0
SEED = 5


def cloud(
    processes: Processes, name: str, keys: Path, bind: str = "tcp://127.0.0.1:*", *more: str
) -> tuple[ChildProcess, str]:
    """Start a cloud; return its process and address."""
    process = processes.start(name, [str(CLOUD), "--keys", str(keys), "--bind", bind, *more])
    return process, str(processes.wait_ready(process, START_S)["address"])


def killed(processes: Processes, folder: Path, answers: int) -> list[Figure]:
    """Answers during each of which the cloud is killed at a random moment and started again."""
    keys = folder / "killed"
    generate(keys)
    rng = random.Random(SEED)
    process, address = cloud(processes, "killed", keys)
    outcomes: Counter[str] = Counter()
    with robot(address, keys, ProtocolTiming(give_up_s=30.0)) as verifier:
        for answer in tqdm(range(1, answers + 1), desc="kills", disable=None, leave=False):
            ended = threading.Event()
            asked = threading.Thread(target=_ask_one, args=(verifier, answer, outcomes, ended))
            asked.start()
            time.sleep(rng.uniform(0.0, 0.5))
            os.killpg(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
            processes.stop(["killed"])
            process, address = cloud(processes, "killed", keys, address)
            ended.wait()
    processes.stop(["killed"])
    fine = answers - outcomes["wrong"] - outcomes["hang"]
    outcomes_text = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    note = f"{answers} answers of 100 tokens, a kill -9 in each; {outcomes_text}"
    return [Figure("cloud_killed_right_or_named", fine / answers, 1.0, "at least", note)]


def _ask_one(verifier: object, answer: int, outcomes: Counter[str], ended: threading.Event) -> None:
    outcomes[ask(verifier, answer, 100)] += 1  # type: ignore[arg-type]
    ended.set()


def two_clouds(processes: Processes, folder: Path, answers: int) -> list[Figure]:
    """Robots that know two clouds, one of which is killed and started again all the time."""
    keys = folder / "two"
    generate(keys)
    first, one = cloud(processes, "first", keys)
    _, two = cloud(processes, "second", keys)
    askers = [Asking(f"{one},{two}", keys, max_tokens=40).start() for _ in range(4)]
    kills = 0
    with tqdm(total=answers, desc="answers", disable=None, leave=False) as bar:
        while _done(askers, bar) < answers:
            time.sleep(1.0)
            os.killpg(first.popen.pid, signal.SIGKILL)
            first.popen.wait()
            processes.stop(["first"])
            kills += 1
            first, one = cloud(processes, "first", keys, one)
    outcomes = sum((asker.stop() for asker in askers), Counter())
    processes.stop(["first", "second"])
    total = sum(outcomes.values())
    outcomes_text = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    note = f"{total} answers of 4 robots that know both addresses, {kills} kills; {outcomes_text}"
    return [Figure("one_of_two_killed_right", outcomes["right"] / total, 1.0, "at least", note)]


def soak(processes: Processes, folder: Path, answers: int) -> list[Figure]:
    """Growth of memory, descriptors and threads of cloud and robots over many answers."""
    keys = folder / "soak"
    generate(keys)
    process, address = cloud(processes, "soak", keys, "tcp://127.0.0.1:*", "--step-ms", "0")
    askers = [Asking(address, keys, max_tokens=8).start() for _ in range(2)]
    pids = {"cloud": process.popen.pid, "robots": os.getpid()}
    _until_done(askers, answers // 5)
    before = {name: footprint(pid) for name, pid in pids.items()}
    _until_done(askers, answers)
    after = {name: footprint(pid) for name, pid in pids.items()}
    outcomes = sum((asker.stop() for asker in askers), Counter())
    processes.stop(["soak"])
    growth = {n: after[n].resident_bytes / before[n].resident_bytes - 1 for n in pids}
    leaks = sum(after[n].descriptors - before[n].descriptors for n in pids)
    leaks += sum(after[n].threads - before[n].threads for n in pids)
    note = f"{outcomes['right']} of {sum(outcomes.values())} right; cloud {growth['cloud']:.2%}, "
    note += f"robots {growth['robots']:.2%}, from a fifth of the answers on"
    return [
        Figure("soak_memory_growth", max(growth.values()), 0.02, "at most", note),
        Figure("soak_leaks", leaks, 0, "at most", "descriptors and threads of both"),
    ]


def _done(askers: list[Asking], bar: tqdm[None]) -> int:
    """Return how many answers have ended, and show it; a bar without a terminal does not count."""
    done = sum(sum(asker.outcomes.values()) for asker in askers)
    bar.update(done - bar.n)
    return done


def _until_done(askers: list[Asking], answers: int) -> None:
    with tqdm(total=answers, desc="answers", disable=None, leave=False) as bar:
        while _done(askers, bar) < answers:
            time.sleep(0.05)
