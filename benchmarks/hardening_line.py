"""Bits flipped on a line of 60 to 90 ms: does the answer go on, and how long is the pause?

    python benchmarks/hardening_line.py [--quick]

Real server, protocol, sockets and CURVE around a target that is a hash (benchmarks/service_cloud.py); a TCP
line between each robot and the cloud delays what passes and flips one bit per answer, at a random byte of
what passes next in a random direction at a random moment. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from figures import ROOT, Figure, report
from service_cloud import HELLO, HashModel, answer_of

sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from test.net.line import Line, lines_to
from test.net.test_damage import AT_ONCE, PARAMS, ask_over, served
from test.net.test_sockets import own_answer
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.types import AnswerRequest, Event, Hint, Observation, SamplingParams
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.keys import cloud_keys, edge_keys, generate
from vlm_spec_decode.transport.router import RouterLink

CLOCK = WallClock()
DELAY_S = (0.06, 0.09)
STEP_S = 0.02
ROBOTS = 4
TOKENS = 24
STRATEGIES = ("autoregressive", "speculative", "hybrid")
SEED = 17


@dataclass(slots=True)
class HarmedVerifier:
    """A verifier for one answer: flips a bit at its `harm_at`th event, and measures the pauses."""

    inner: RemoteVerifier
    line: Line
    rng: random.Random
    harm_at: int
    pause_s: float = 0.0
    last_s: float = 0.0
    turns: int = 0

    def begin(self) -> None:
        """Start measuring; call it before the question is sent."""
        self.last_s = CLOCK.now()
        self._maybe_flip()

    def submit(self, message: Hint) -> None:
        """Call `inner`."""
        self.inner.submit(message)

    def poll(self) -> Event | None:
        """Call `inner`."""
        event = self.inner.poll()
        return self._on_event(event) if event else None

    def wait(self, timeout_s: float) -> Event:
        """Call `inner`."""
        return self._on_event(self.inner.wait(timeout_s))

    def _on_event(self, event: Event) -> Event:
        now_s = CLOCK.now()
        self.pause_s, self.last_s = max(self.pause_s, now_s - self.last_s), now_s
        self._maybe_flip()
        return event

    def _maybe_flip(self) -> None:
        if self.turns == self.harm_at:
            self.line.flip(self.rng.random(), self.rng.randrange(8), is_up=self.rng.random() < 0.5)
        self.turns += 1


@contextmanager
def cloud(keys: Path) -> Iterator[str]:
    """A cloud in this process."""
    target = HashModel(STEP_S)
    server = CloudServer(
        RouterLink("tcp://127.0.0.1:*", cloud_keys(keys)),
        ServerProtocol(target.card, HELLO.grammar_digest),
        target,
        CLOCK,
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join()


def ask(number: int, verifier: RemoteVerifier, line: Line) -> tuple[str, float]:
    """Ask one question; return "right", "wrong" or the name of the error, and the longest pause."""
    rng = random.Random(SEED + number)
    params = SamplingParams(temperature=1.0, max_tokens=TOKENS, seed=number)
    observation = Observation(None, f"question {number % 17} " + "and on " * rng.randrange(60))
    name = STRATEGIES[number % len(STRATEGIES)]
    harmed = HarmedVerifier(
        verifier, line, rng, rng.randrange(TOKENS // 2 if name == "autoregressive" else 4)
    )
    harmed.begin()
    verifier.open(AnswerRequest(number, observation, params, name))
    config = EdgeConfig(answer=number, params=params, draft_length=4)
    tokens_so_far: list[int] = []
    try:
        for tokens in strategy(name).decode(Sequence(), HashModel().open(observation), harmed, CLOCK, config):  # type: ignore[arg-type]
            tokens_so_far += tokens
    except VsdError as error:
        return type(error).__name__, CLOCK.now() - harmed.last_s
    finally:
        verifier.close()
    return "right" if tuple(tokens_so_far) == answer_of(
        observation.instruction, params
    ) else "wrong", harmed.pause_s


def robot(keys: Path, line: Line, numbers: range) -> list[tuple[str, float]]:
    """Ask questions one after the other over a line."""
    verifier = RemoteVerifier(DealerLink(line.address, edge_keys(keys), CLOCK), HELLO, CLOCK)
    try:
        verifier.connect(timeout_s=30.0)
        asked = tqdm(numbers, desc="answers", disable=None, leave=False)
        return [ask(number, verifier, line) for number in asked]
    finally:
        verifier.disconnect()


def flipped(answers: int) -> list[Figure]:
    """One flipped bit per answer, four robots at a time."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder)
        generate(keys)
        with cloud(keys) as address, lines_to(address, ROBOTS, DELAY_S) as lines:
            with ThreadPoolExecutor(ROBOTS) as pool:
                runs = [
                    pool.submit(robot, keys, line, range(1 + index, answers + 1, ROBOTS))
                    for index, line in enumerate(lines)
                ]
                ended = [one for run in runs for one in run.result()]
            flips, connections = sum(line.flipped for line in lines), sum(line.made for line in lines)
    outcomes = Counter(outcome for outcome, _ in ended)
    unnamed = outcomes["wrong"] + answers - len(ended)
    longest_s = max(pause_s for _, pause_s in ended)
    note = f"{answers} answers, {flips} flips, {connections} connections; " + ", ".join(
        f"{count} {outcome}" for outcome, count in outcomes.most_common()
    )
    return [
        Figure("flipped_bits_right", outcomes["right"] / answers, 0.99, "at least", note),
        Figure("flipped_bits_not_named", unnamed, 0, "at most", "wrong, or never ended"),
        Figure("flipped_bits_longest_pause", longest_s, 4.0, "at most", "seconds"),
    ]


def offsets(step: int) -> list[Figure]:
    """A bit flipped at every `step`th offset of a connection that carries two answers, both ways."""
    right = count = 0
    longest_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder)
        generate(keys)
        with served(keys) as address:
            (sound,) = ask_over(address, keys, [(10**9, 0, True)])
            for is_up in (True, False):
                size = len(sound.line.carried[is_up])
                flips = [(at, (at * 5 + at // 8) % 8, is_up) for at in range(0, size, step)]
                for start in tqdm(range(0, len(flips), AT_ONCE), desc="offsets", disable=None, leave=False):
                    robots = ask_over(address, keys, flips[start : start + AT_ONCE])
                    harmed = [robot for robot in robots if robot.line.flipped]
                    count += len(harmed)
                    right += sum(robot.said == [own_answer(PARAMS)] * 2 for robot in harmed)
                    longest_s = max([longest_s, *(robot.pause_s for robot in harmed)])
    note = f"{count} offsets of both directions, each with a bit; longest pause {longest_s:.1f} s"
    return [Figure("flipped_offsets_right", right / count, 1.0, "at least", note)]


def figures(quick: bool) -> list[Figure]:
    """Return all figures."""
    return flipped(30 if quick else 300) + offsets(41 if quick else 1)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    out = ROOT / "out" / "hardening_line.json"
    return report(figures(options.quick), out)


if __name__ == "__main__":
    sys.exit(main())
