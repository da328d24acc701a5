"""What GPU time costs an answer while others wait for it: the price of a node, of a pass and of waiting.

A GPU runs one pass after the other. A pass of n answers over N nodes takes

    T(n, N) = b + a (n - 1) + s N                                  (`PassTimes`, learned from every pass)

seconds, so an answer that joins a pass adds a seconds to it, and a node adds s. All who wait for the GPU are
held up by as much. A second is worth u to an answer, 0 < u <= 1: the more, the less time it has to spare
(`urgency`). For answer i let k = Σ u_j / u_i over the others that are ready: the answers like itself that
each second of the GPU holds up (`Price.others`). A pass then costs not only the T seconds that answer i
itself waits for its end but k a more, and a node costs (1 + k) s. With E tokens in a pass

    a token is worth        c = own seconds per token + k a / E    (`Price.token_s`)
    a node is verified if   P(node) c >= (1 + k) s                 (`Price.node_floor`)
    a second of waiting counts 1 / (1 + k a / T) against one of the GPU (`Price.wait_weight`).

With k = 0 each is what an answer alone weighs. As k grows, the floor goes to s E / a for every answer: a node
is verified if it brings more tokens per GPU second than the pass does. One threshold for all robots is how
draft lengths are allotted that bring most tokens for the GPU's time (the multiplier of its budget in DiP-SD,
2604.20919, and Multi-SPIN, 2606.04581), and nobody has to solve for them: each policy cuts its own tree.

Only what is tried follows the price; what is committed does not. Knows no requests, queues or messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FORGET = 0.98
"""What is left of a pass's weight in the fit after each further one."""

USUAL_ANSWER, USUAL_NODE = 0.03, 0.01
"""Of a pass: what an answer and a node add to it, before that has been measured."""

TRUST, FAR_ANSWERS, FAR_NODES = 0.5, 8.0, 20.0
"""The usual figures count as so many passes of each kind: plain, of more answers, and of more nodes."""

LEAST_URGENCY = 0.2
"""Of an answer with time to spare: its time is worth something all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What the GPU's time costs one answer now. Seconds of the GPU; `others` is k above.

    `pass_s` is how long the next pass will take, `answer_s` what this answer adds to it and `node_s` what a
    node does. The default is the price of an idle GPU: nobody else is held up.
    """

    others: float = 0.0
    pass_s: float = 0.0
    answer_s: float = 0.0
    node_s: float = 0.0

    @property
    def is_free(self) -> bool:
        """Whether nobody else is held up, or nothing is known of what passes take."""
        return self.others <= 0 or not self.pass_s

    def token_s(self, own_s: float, tokens: float) -> float:
        """Return what a token is worth, c, to an answer that spends `own_s` on each, `tokens` a pass."""
        return own_s + self.others * self.answer_s / tokens

    def node_floor(self, own_s: float, tokens: float) -> float:
        """Return how likely a node must be to be worth its time: (1 + k) s / c."""
        return (1 + self.others) * self.node_s / self.token_s(own_s, tokens)

    @property
    def wait_weight(self) -> float:
        """What a second of waiting counts against a second of the GPU, 1 on an idle one, never 0."""
        return 1.0 if self.is_free else 1 / (1 + self.others * self.answer_s / self.pass_s)


FREE = Price()
"""The price of a GPU that nobody else waits for."""


def urgency(work_s: float, left_s: float | None) -> float:
    """Return u, what a second is worth to an answer that needs `work_s` more and has `left_s` for it.

    None: it has no deadline, and is held up by every second. So is one that is late already.
    """
    if left_s is None or left_s <= work_s:
        return 1.0
    return max(LEAST_URGENCY, work_s / left_s)


def others_of(urgencies: list[float]) -> list[float]:
    """Return k for each of the answers that wait for the GPU: Σ u_j / u_i over all j but i."""
    whole = sum(urgencies)
    # A lone answer must get 0 and not what rounding leaves of it.
    return [(whole - own) / own if len(urgencies) > 1 else 0.0 for own in urgencies]


@dataclass(slots=True)
class PassTimes:
    """T(n, N) as measured: a least-squares plane that forgets, held by what is usual.

    Passes that read prompts say nothing of a row's cost and are not learned.
    """

    base_s: float = 0.0
    answer_s: float = 0.0
    node_s: float = 0.0
    _sums: list[float] = field(default_factory=lambda: [0.0] * 9)

    def learn(self, answers: int, nodes: int, seconds: float) -> None:
        """Take a pass over `nodes` nodes of so many answers."""
        if seconds <= 0 or answers < 1:
            return
        more = answers - 1.0
        self.base_s = self.base_s or seconds / (1 + USUAL_ANSWER * more + USUAL_NODE * nodes)
        terms = [1, more, nodes, more * more, more * nodes, nodes * nodes]
        terms += [seconds, more * seconds, nodes * seconds]
        self._sums = [FORGET * known + new for known, new in zip(self._sums, terms, strict=True)]
        self._fit()

    def seconds(self, answers: int, nodes: int) -> float:
        """Return what a pass takes, 0 before one was measured."""
        return self.base_s + self.answer_s * max(0, answers - 1) + self.node_s * nodes

    def _fit(self) -> None:
        """Solve the normal equations of T = b + a x + s y, three usual passes added to the measured ones."""
        n, x, y, xx, xy, yy, t, xt, yt = self._sums
        for far_x, far_y in ((0.0, 0.0), (FAR_ANSWERS, 0.0), (0.0, FAR_NODES)):
            usual_s = self.base_s * (1 + USUAL_ANSWER * far_x + USUAL_NODE * far_y)
            n, x, y = n + TRUST, x + TRUST * far_x, y + TRUST * far_y
            xx, yy = xx + TRUST * far_x**2, yy + TRUST * far_y**2
            t, xt, yt = t + TRUST * usual_s, xt + TRUST * far_x * usual_s, yt + TRUST * far_y * usual_s
        # Around the means: Sxx a + Sxy s = Sxt and Sxy a + Syy s = Syt.
        sxx, sxy, syy = xx - x * x / n, xy - x * y / n, yy - y * y / n
        sxt, syt = xt - x * t / n, yt - y * t / n
        whole = sxx * syy - sxy * sxy
        answer_s = (sxt * syy - syt * sxy) / whole
        node_s = (syt * sxx - sxt * sxy) / whole
        # No row takes time away: what is below 0 is 0, and the other one explains all.
        if answer_s < 0:
            answer_s, node_s = 0.0, max(0.0, syt / syy)
        elif node_s < 0:
            answer_s, node_s = max(0.0, sxt / sxx), 0.0
        self.answer_s, self.node_s = answer_s, node_s
        self.base_s = max(1e-9, (t - answer_s * x - node_s * y) / n)
