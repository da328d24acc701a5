"""How many robots a GPU serves at which latency: a queue in virtual time, from profiles and measured answers.

A robot asks, waits for its answer, and asks again after an exponentially distributed time. An answer is a
number of target passes, the first of which fills the prompt; between two passes the robot drafts and
messages travel, if its strategy waits for that. A GPU runs one pass after the other; each takes the answers
that have waited longest, as the scheduler does, and costs what `BatchCost` says. There are no tokens and no
sockets, so thousands of robots take seconds. `fleet.py` runs the real server protocol and real tokens
for tens of robots.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile

from .fleet import BatchCost

MAX_ROBOTS = 65_536
"""Upper bound of the search for the number of robots."""


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """Work of an answer for the target: `passes`, nodes of each, and tokens drafted between two.

    With `drafts` 0 there is no time between two passes: the cloud continues by itself.
    """

    strategy: str
    passes: int
    nodes: int
    drafts: int = 0

    def gap_s(self, hardware: HardwareProfile, link: LinkProfile) -> float:
        """Return the time from one pass to the readiness for the next."""
        return link.rtt_ms / 1000 + self.drafts * hardware.draft_ms / 1000 if self.drafts else 0.0

    def alone_s(self, hardware: HardwareProfile, link: LinkProfile) -> float:
        """Return the time of an answer if one robot alone uses the GPU."""
        rest_s = (self.passes - 1) * (hardware.pass_s(self.nodes) + self.gap_s(hardware, link))
        return link.rtt_ms / 1000 + hardware.pass_s(self.nodes, is_first=True) + rest_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Robots on one GPU: each thinks for `think_s` on average between two answers."""

    robots: int
    think_s: float
    answers: int = 2000
    seed: int = 0
    batch: int = 32
    fills: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Result: latencies of whole answers, answers a second, and the share of time in which the GPU worked."""

    p50_s: float
    p99_s: float
    answers_per_s: float
    busy: float
    mean_batch: float


@dataclass(slots=True)
class _Gpu:
    """The state of one run."""

    shape: AnswerShape
    hardware: HardwareProfile
    link: LinkProfile
    demand: Demand
    ready: deque[int] = field(default_factory=deque)
    new: deque[int] = field(default_factory=deque)

    def run(self) -> Served:
        """Serve until there are enough answers; the first fifth of them is not counted."""
        demand, shape = self.demand, self.shape
        cost, rng = BatchCost(self.hardware), np.random.default_rng(demand.seed)
        gap_s, half_rtt_s = shape.gap_s(self.hardware, self.link), self.link.rtt_ms / 2000
        begun_s, left = [0.0] * demand.robots, [0] * demand.robots
        first_s = rng.exponential(demand.think_s, demand.robots)
        arrivals = [(float(at_s), robot) for robot, at_s in enumerate(first_s)]
        heapq.heapify(arrivals)
        ended: list[tuple[float, float]] = []
        now_s, work, batched_answers, passes = 0.0, 0.0, 0, 0
        while len(ended) < demand.answers:
            if not self.ready and not self.new:
                now_s = max(now_s, arrivals[0][0])
            while arrivals and arrivals[0][0] <= now_s:
                at_s, robot = heapq.heappop(arrivals)
                if left[robot]:
                    self.ready.append(robot)
                else:
                    begun_s[robot], left[robot] = at_s - half_rtt_s, shape.passes
                    self.new.append(robot)
            batch, fills = self._batch()
            alone_s = self.hardware.pass_s(shape.nodes, is_first=bool(fills))
            pass_s = alone_s * cost.factor_of(len(batch))
            now_s, work, batched_answers, passes = (
                now_s + pass_s,
                work + pass_s,
                batched_answers + len(batch),
                passes + 1,
            )
            for robot in batch:
                left[robot] -= 1
                if left[robot]:
                    heapq.heappush(arrivals, (now_s + gap_s, robot))
                else:
                    ended.append((now_s, now_s + half_rtt_s - begun_s[robot]))
                    again_s = now_s + 2 * half_rtt_s + float(rng.exponential(demand.think_s))
                    heapq.heappush(arrivals, (again_s, robot))
        counted = [duration_s for _, duration_s in ended[len(ended) // 5 :]]
        p50_s, p99_s = np.quantile(counted, (0.5, 0.99))
        since_s = now_s - ended[len(ended) // 5][0]
        rate = len(counted) / since_s if since_s > 0 else 0.0
        return Served(
            p50_s=float(p50_s),
            p99_s=float(p99_s),
            answers_per_s=rate,
            busy=work / now_s,
            mean_batch=batched_answers / passes,
        )

    def _batch(self) -> tuple[list[int], int]:
        """Return the robots that have waited longest, and how many of them are new, at most `fills`."""
        fills = min(len(self.new), self.demand.fills, self.demand.batch)
        batch = [self.new.popleft() for _ in range(fills)]
        batch += [self.ready.popleft() for _ in range(min(len(self.ready), self.demand.batch - fills))]
        return batch, fills


def serve(shape: AnswerShape, hardware: HardwareProfile, link: LinkProfile, demand: Demand) -> Served:
    """Return how one GPU serves `demand`."""
    return _Gpu(shape, hardware, link, demand).run()


def most_robots(
    shape: AnswerShape, hardware: HardwareProfile, link: LinkProfile, think_s: float, stretch: float
) -> tuple[int, Served]:
    """Return the most robots whose p99 stays within `stretch` times the answer of one robot alone.

    Found by doubling and bisection; (0, …) if not even one does.
    """
    limit_s = stretch * shape.alone_s(hardware, link)

    def serve_within_limit(robots: int) -> Served | None:
        served = serve(shape, hardware, link, Demand(robots=robots, think_s=think_s))
        return served if served.p99_s <= limit_s else None

    low, high, best = 0, 1, serve(shape, hardware, link, Demand(robots=1, think_s=think_s))
    while (served := serve_within_limit(high)) and high < MAX_ROBOTS:
        low, high, best = high, 2 * high, served
    while high - low > max(1, low // 25):
        middle = (low + high) // 2
        if served := serve_within_limit(middle):
            low, best = middle, served
        else:
            high = middle
    return low, best
