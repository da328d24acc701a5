"""A robot of benchmarks/service.py: asks over real sockets, and returns the outcome of each answer."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service_cloud import HELLO, answer_of

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.types import AnswerRequest, Commit, Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.keys import edge_keys

CLOCK = WallClock()
HANG_S = 60.0
"""An answer that has neither ended nor raised an error for this time counts as hanging."""


@contextmanager
def robot(
    addresses: str, keys: Path, timing: ProtocolTiming | None = None, *, is_nearest: bool = False
) -> Iterator[RemoteVerifier]:
    """A connection to one or several clouds."""
    link = DealerLink(addresses, edge_keys(keys), CLOCK)
    verifier = RemoteVerifier(link, HELLO, CLOCK, timing, is_nearest=is_nearest)
    try:
        verifier.connect(timeout_s=30.0)
        yield verifier
    finally:
        verifier.disconnect()


def ask(verifier: RemoteVerifier, answer: int, max_tokens: int) -> str:
    """Ask one question; return "right", "wrong", "hang", or the name of the error."""
    params = SamplingParams(temperature=1.0, max_tokens=max_tokens, seed=answer)
    instruction = f"question {answer % 17}"
    verifier.open(AnswerRequest(answer, Observation(None, instruction), params, "autoregressive"))
    received: Tokens = ()
    until_s = CLOCK.now() + HANG_S
    try:
        while CLOCK.now() < until_s:
            event = verifier.wait(HANG_S)
            if isinstance(event, Commit):
                received += event.tokens
                if event.finished:
                    verifier.close()
                    return "right" if received == answer_of(instruction, params) else "wrong"
    except CloudError as error:
        verifier.close()
        return type(error).__name__
    return "hang"


@dataclass(slots=True)
class Asking:
    """A robot that asks repeatedly, on a thread of its own, until `stop`. `at` is where it is."""

    addresses: str
    keys: Path
    max_tokens: int = 8
    pause_s: float = 0.0
    is_nearest: bool = False
    at: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> Asking:
        """Start asking."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> Counter[str]:
        """End after the present answer; return the counts of outcomes."""
        self._ending.set()
        if self._thread:
            self._thread.join(timeout=2 * HANG_S)
        return self.outcomes

    def _run(self) -> None:
        with robot(self.addresses, self.keys, is_nearest=self.is_nearest) as verifier:
            answer = 0
            while not self._ending.is_set():
                answer += 1
                self.outcomes[ask(verifier, answer, self.max_tokens)] += 1
                self.at = verifier.clouds.partition(",")[0]
                time.sleep(self.pause_s)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resources of a process."""

    resident_bytes: int
    descriptors: int
    threads: int
    cpu_s: float


def footprint(pid: int) -> Footprint:
    """Return the present resources of a process, from /proc."""
    process = Path(f"/proc/{pid}")
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    descriptors = len(list((process / "fd").iterdir()))
    times = (process / "stat").read_text().rsplit(")", 1)[1].split()[11:13]
    cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return Footprint(1024 * int(lines["VmRSS"].split()[0]), descriptors, int(lines["Threads"]), cpu_s)
