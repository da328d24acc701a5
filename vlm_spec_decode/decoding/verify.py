"""Verification: which drafted tokens are accepted, and which token follows them, under both exact rules.

`coupled`: both ends choose with the same noise, so a node is accepted exactly if it is the target's own
choice at that position. The result is the target's own answer for any tree, any drafter and any loss of
drafts.

`rejection`: speculative sampling (Leviathan et al., 2211.17192, appendix A.1). Both ends reckon in
integers: the target's p in units of 2**-40, the draft's q in units of 2**-16. What is sampled from is
exactly what is compared and what is sent, so no rounding stands between the rule and its proof. Flooring p
moves less than vocabulary x 2**-40 of mass to its best token (3e-8 at 32,000), far below the float32 of the
logits; under this rule that *is* the target. A draft whose q is known in full is corrected here. One that
brings only the weight of its own token is corrected by the edge (separate rejection sampling, PicoSpec
2603.19133 section 3; DSSD 2507.12000): the target's sparse distribution goes down, and the session waits
for a `Correction`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from vlm_spec_decode.core.choices import Distribution
from vlm_spec_decode.core.ports import Scores
from vlm_spec_decode.core.types import DraftMessage, SamplingParams, SparseTarget, Support, Tokens
from vlm_spec_decode.decoding.choices import Q_UNIT, Remainder, as_choices
from vlm_spec_decode.decoding.counter_rng import CounterRng, KeyedCounterRng
from vlm_spec_decode.decoding.tree import Subtree, positions_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """`tokens` are true; `row` is the deepest accepted row of the pass (0: none); `finished` ends it.

    If it `is_open`, the token after `tokens` is the edge's to draw (rule `rejection` only).
    """

    tokens: Tokens
    row: int
    finished: bool
    is_open: bool = False


def verify_coupled(
    scores: Scores, tokens: Tokens, parents: Tokens, start: int, params: SamplingParams
) -> Verdict:
    """Walk down the verified tree as long as the target agrees, then add its own next token.

    `scores` [1 + n rows] are those of `ModelContext.score` for the same `tokens` and `parents`;
    `start` is the number of answer tokens already committed.
    """
    # (parent row, token) names a node: siblings differ in their tokens.
    choices = as_choices(scores)
    child = {(parent, token): row for row, (token, parent) in enumerate(zip(tokens, parents, strict=True), 1)}
    pick = choices.pick_each(positions_of(parents, start), params)
    said: list[int] = []
    row = 0
    while True:
        token = pick(row)
        said.append(token)
        finished = token in params.stop_ids or start + len(said) >= params.max_tokens
        # The node is accepted exactly if the target would have said its token here; else this token corrects
        # it.
        accepted = child.get((row, token))
        row = row if accepted is None else accepted
        if finished or accepted is None:
            return Verdict(tuple(said), row, finished)


P_UNIT = 1 << 40
Q_GRAIN = 1 << 8
"""Weights of a q that travels whole are multiples of this: one byte each."""


def certain(token: int) -> Support:
    """Return the q of a token that is proposed without a throw of the dice."""
    return ((token, Q_UNIT),)


def is_complete(support: Support) -> bool:
    """Tell whether this is all of q, so that anyone who has it can draw from the residual."""
    return sum(weight for _, weight in support) == Q_UNIT


def truncated(q: Distribution, most: int) -> Support:
    """Return q cut to its `most` likeliest ids, ascending, in coarse parts: small enough to travel whole."""
    kept = q.top(most)
    whole = sum(part for _, part in kept)
    # Shares of Q_UNIT in steps of Q_GRAIN; the likeliest id takes what flooring leaves.
    coarse = {token: part * (Q_UNIT // Q_GRAIN) // whole * Q_GRAIN for token, part in kept}
    coarse[kept[0][0]] += Q_UNIT - sum(coarse.values())
    return tuple(sorted((token, part) for token, part in coarse.items() if part))


def sparse_target(
    p: Distribution, most: int, samples: int, chance: CounterRng, prefix: Tokens, *, is_cut: bool = False
) -> SparseTarget:
    """Return p with its `most` likeliest ids and, if it has mass outside them, `samples` tail samples.

    Sample i is named by (prefix, i): asking for more of them repeats the first ones.
    """
    kept = sorted(p.top(most))
    ids, parts = tuple(token for token, _ in kept), tuple(part for _, part in kept)
    rest = Remainder(p).without(ids)
    drawn = [chance.draw(rest, "tail", prefix, i) for i in range(0 if is_cut or not rest.whole else samples)]
    return SparseTarget(ids, parts, rest.whole, tuple((y, p.part(y)) for y in drawn), is_cut)


def draw_correction(target: SparseTarget, q: Support, chance: CounterRng, prefix: Tokens) -> int | None:
    """Draw from norm(max(0, p - q)) on the edge, or return None if the tail samples have run out.

    Rejection sampling with the proposal max(0, p - q) on the sent ids and p outside: a place is drawn; if
    it is "outside", the next tail sample y is kept with probability max(0, p(y) - q(y)) / p(y), else the
    place is drawn anew. The law is exact for every K; only a plain top-K cut (`is_cut`) is not.
    """
    scaled = {token: weight * (P_UNIT // Q_UNIT) for token, weight in q}
    pairs = zip(target.ids, target.parts, strict=True)
    inside = [max(0, part - scaled.get(token, 0)) for token, part in pairs]
    if target.is_cut:
        return _draw_cut(target, inside, chance, prefix)
    places = np.array([*inside, target.outside], dtype=np.int64)
    for attempt in range(len(target.tail) + 1):
        place = chance.index(places, "place", prefix, attempt)
        if place < len(target.ids):
            return target.ids[place]
        if attempt == len(target.tail):
            return None
        token, part = target.tail[attempt]
        if chance.happens(part - scaled.get(token, 0), part, "keep", prefix, attempt):
            return token
    return None


def _draw_cut(target: SparseTarget, inside: list[int], chance: CounterRng, prefix: Tokens) -> int:
    """PicoSpec's residual of a top-K cut; where the cut has left nothing of it, p itself decides."""
    places = np.array(inside if any(inside) else target.parts, dtype=np.int64)
    return target.ids[chance.index(places, "place", prefix)]


def cut_bias_bound(target: SparseTarget, q: Support) -> float:
    """Return how far (total variation) the law of a correction drawn from a top-K cut can be off.

    With m mass outside the K ids and r of the residual inside, at most m / (r + m) of the residual is
    lost. Weighted with the chance of a rejection, a position's law is off by at most m.
    """
    scaled = {token: weight * (P_UNIT // Q_UNIT) for token, weight in q}
    pairs = zip(target.ids, target.parts, strict=True)
    inside = sum(max(0, part - scaled.get(token, 0)) for token, part in pairs)
    return target.outside / (inside + target.outside) if target.outside else 0.0


IDS_SENT = {"sparse": 10, "cloud": 10, "top_k": 10, "full": 4096}
"""Ids of p that travel; `full` is as many as one message holds."""

MAX_SAMPLES = 512
TAIL_SENT = 4
"""Tail samples that go with the first residual, one if there is hardly a tail."""


def residual(p: Remainder, q: Support) -> Remainder:
    """Return max(0, p - q): what p has left after a draft that was drawn from a complete `q` is rejected."""
    return p.minus(q)


@dataclass(slots=True)
class RejectionRule:
    """One answer's acceptance tests, the q of its live drafts, and the correction that it waits for."""

    params: SamplingParams
    chance: CounterRng = field(init=False)
    _q: dict[int, Support] = field(default_factory=dict)
    _awaited: tuple[Tokens, Distribution] | None = None

    def __post_init__(self) -> None:
        self.chance = KeyedCounterRng(self.params.seed)

    @property
    def is_waiting(self) -> bool:
        """Whether the edge owes a correction; until then there is nothing to verify."""
        return self._awaited is not None

    def learn(self, draft: DraftMessage, new: Tokens, live: Container[int]) -> None:
        """Keep what the `new` nodes of a draft were drawn from, and forget that of nodes no longer live."""
        self._q = {number: support for number, support in self._q.items() if number in live}
        if draft.q:
            self._q |= {number: draft.q[number - draft.first_node] for number in new}

    def verify(
        self,
        nodes: Subtree,
        scores: Scores,
        prefix: Tokens,
        has_bonus: bool,
        own_q: Mapping[int, Support] | None = None,
    ) -> Verdict:
        """Walk down the drafts as far as they are accepted and settle the position after them.

        Without `has_bonus` a chain that is accepted to its end gets no token of the target's own: the edge
        may already have drawn one for that position (mid-pipeline). A plain step always draws. `own_q` is
        what nodes of the cloud's own were drawn from.
        """
        choices, known = as_choices(scores), self._q | dict(own_q or {})
        said: Tokens = ()
        row = 0
        while True:
            path = prefix + said
            drafts = [i for i, parent in enumerate(nodes.parents, start=1) if parent == row]
            if not drafts and nodes.tokens and not has_bonus:
                return Verdict(said, row, False)
            p = Remainder(choices.distribution(row, self.params, P_UNIT))
            found = self._settle(p, drafts, nodes, path, known)
            if found is None:
                return Verdict(said, row, False, is_open=True)
            token, accepted = found
            said += (token,)
            row = accepted or row
            finished = self.params.ends(len(prefix) + len(said), token)
            if finished or not accepted:
                return Verdict(said, row, finished)

    def guess(self, nodes: Subtree, scores: Scores, prefix: Tokens, own_q: Mapping[int, Support]) -> Verdict:
        """Return the likeliest outcome by an exit's logits, without a throw of the dice.

        An exit that used the answer's own draws would tell the edge of them before they are used.
        """
        choices, known = as_choices(scores), self._q | dict(own_q)
        said: Tokens = ()
        row = 0
        while True:
            p = choices.distribution(row, self.params, P_UNIT)
            draft = next((i for i, parent in enumerate(nodes.parents, start=1) if parent == row), 0)
            token = nodes.tokens[draft - 1] if draft else p.best
            q = (known.get(nodes.numbers[draft - 1]) or certain(token)) if draft else ()
            # P(accepted) = min(1, p(x) / q(x)), so it is likely from 1/2 on.
            accepted = draft and 2 * p.part(token) * Q_UNIT >= P_UNIT * q[0][1]
            if draft and not accepted:
                rest = residual(Remainder(p), q)
                token = rest.best if rest.whole else p.best
            said += (token,)
            row = draft if accepted else row
            finished = self.params.ends(len(prefix) + len(said), token)
            if finished or not accepted:
                return Verdict(said, row, finished)

    def wait_for_edge(self, prefix: Tokens, scores: Scores, row: int) -> SparseTarget | None:
        """Begin to wait for the correction after `prefix`, after which the target says row `row`."""
        self._awaited = (prefix, as_choices(scores).distribution(row, self.params, P_UNIT))
        return self.sparse()

    def corrected(self) -> None:
        """The awaited correction has come."""
        self._awaited = None

    def more(self, count: int) -> SparseTarget | None:
        """Return what the edge needs, now with `count` tail samples; None if no correction is awaited."""
        return self.sparse(min(MAX_SAMPLES, count))

    def sparse(self, samples: int = 0) -> SparseTarget | None:
        """Return what the edge needs to draw the awaited correction, None if none is awaited."""
        if self._awaited is None:
            return None
        prefix, p = self._awaited
        how = self.params.residual
        outside = p.unit - sum(part for _, part in p.top(IDS_SENT[how]))
        samples = samples or (TAIL_SENT if outside > P_UNIT >> 8 else 1)
        return sparse_target(p, IDS_SENT[how], samples, self.chance, prefix, is_cut=how == "top_k")

    def _settle(
        self, p: Remainder, drafts: list[int], nodes: Subtree, path: Tokens, known: Mapping[int, Support]
    ) -> tuple[int, int] | None:
        """Return the token after `path` and the row that drafted it (0: none); None if the edge must draw it.

        Siblings are tried one after the other, each against what its elders have left of p.
        """
        for attempt, row in enumerate(drafts):
            token = nodes.tokens[row - 1]
            q = known.get(nodes.numbers[row - 1]) or certain(token)
            # A sibling is tried against what its elders have left of p, which only a whole q tells.
            if attempt and not is_complete(q):
                break
            # Accept x ~ q with probability min(1, p(x) / q(x)) (2211.17192, section 2.3).
            if self.chance.happens(p.weight(token) * Q_UNIT, p.whole * q[0][1], "accept", path, attempt):
                return token, row
            if not is_complete(q):
                return None
            # Rejected: go on with norm(max(0, p - q)), which makes the two cases add up to p (appendix A.1).
            p = residual(p, q)
        return self.chance.draw(p, "residual" if drafts else "target", path), 0
