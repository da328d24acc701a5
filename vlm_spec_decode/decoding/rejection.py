"""The `rejection` rule at the cloud: speculative sampling, its residual drawn here or on the edge.

Leviathan et al. (2211.17192, appendix A.1) with the acceptance and the residual in whole numbers. A draft
whose q is known in full is corrected here. One that brings only the weight of its own token is corrected
by the edge (separate rejection sampling, PicoSpec 2603.19133 section 3; DSSD 2507.12000): the target's
sparse distribution goes down and the session waits for a `Correction`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from vlm_spec_decode.core.ports import Logits
from vlm_spec_decode.core.types import DraftMessage, SamplingParams, SparseTarget, Support, Tokens
from vlm_spec_decode.decoding.counter_rng import CounterRng, KeyedCounterRng, Weights
from vlm_spec_decode.decoding.sampling import Row
from vlm_spec_decode.decoding.sparse import P_UNIT, Q_UNIT, certain, is_complete, sparse_target, weights
from vlm_spec_decode.decoding.tree import Subtree
from vlm_spec_decode.decoding.verify import Verdict

IDS_SENT = {"sparse": 10, "cloud": 10, "top_k": 10, "full": 4096}
"""Ids of p that travel; `full` is as many as one message holds."""

MAX_SAMPLES = 512
TAIL_SENT = 4
"""Tail samples that go with the first residual, one if there is hardly a tail."""


def residual(p: Weights, whole: int, q: Support) -> Weights:
    """Return max(0, p - q) in whole parts; `p` sums to `whole`, a complete `q` to 2**16."""
    wide = p if whole * Q_UNIT < 1 << 62 else p.astype(object)
    rest = wide * Q_UNIT
    for token, weight in q:
        rest[token] = max(0, rest[token] - whole * weight)
    return np.asarray(rest)


@dataclass(slots=True)
class RejectionRule:
    """One answer's acceptance tests, the q of its live drafts, and the correction that it waits for."""

    params: SamplingParams
    chance: CounterRng = field(init=False)
    _q: dict[int, Support] = field(default_factory=dict)
    _awaited: tuple[Tokens, Weights] | None = None

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
        logits: Logits,
        prefix: Tokens,
        has_bonus: bool,
        own_q: Mapping[int, Support] | None = None,
    ) -> Verdict:
        """Walk down the drafts as far as they are accepted and settle the position after them.

        Without `has_bonus` a chain that is accepted to its end gets no token of the target's own: the edge
        may already have drawn one for that position (mid-pipeline). A plain step always draws. `own_q` is
        what nodes of the cloud's own were drawn from.
        """
        known = self._q | dict(own_q or {})
        said: Tokens = ()
        row = 0
        while True:
            path = prefix + said
            drafts = [i for i, parent in enumerate(nodes.parents, start=1) if parent == row]
            if not drafts and nodes.tokens and not has_bonus:
                return Verdict(said, row, False)
            p = weights(logits[row], self.params, P_UNIT)
            found = self._settle(p, drafts, nodes, path, known)
            if found is None:
                return Verdict(said, row, False, is_open=True)
            token, accepted = found
            said += (token,)
            row = accepted or row
            finished = self.params.ends(len(prefix) + len(said), token)
            if finished or not accepted:
                return Verdict(said, row, finished)

    def guess(self, nodes: Subtree, logits: Logits, prefix: Tokens, own_q: Mapping[int, Support]) -> Verdict:
        """Return the likeliest outcome by an exit's logits, without a throw of the dice.

        An exit that used the answer's own draws would tell the edge of them before they are used.
        """
        known = self._q | dict(own_q)
        said: Tokens = ()
        row = 0
        while True:
            p = weights(logits[row], self.params, P_UNIT)
            draft = next((i for i, parent in enumerate(nodes.parents, start=1) if parent == row), 0)
            token = nodes.tokens[draft - 1] if draft else int(np.argmax(p))
            q = (known.get(nodes.numbers[draft - 1]) or certain(token)) if draft else ()
            accepted = draft and 2 * int(p[token]) * Q_UNIT >= P_UNIT * q[0][1]
            if draft and not accepted:
                rest = residual(p, P_UNIT, q)
                token = int(np.argmax(rest if rest.any() else p))
            said += (token,)
            row = draft if accepted else row
            finished = self.params.ends(len(prefix) + len(said), token)
            if finished or not accepted:
                return Verdict(said, row, finished)

    def wait_for_edge(self, prefix: Tokens, logits: Row) -> SparseTarget | None:
        """Begin to wait for the correction after `prefix`, where the target says `logits` [vocab]."""
        self._awaited = (prefix, weights(logits, self.params, P_UNIT))
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
        samples = samples or (TAIL_SENT if int(np.sort(p)[: -IDS_SENT[how]].sum()) > P_UNIT >> 8 else 1)
        return sparse_target(p, IDS_SENT[how], samples, self.chance, prefix, is_cut=how == "top_k")

    def _settle(
        self, p: Weights, drafts: list[int], nodes: Subtree, path: Tokens, known: Mapping[int, Support]
    ) -> tuple[int, int] | None:
        """Return the token after `path` and the row that drafted it (0: none); None if the edge must draw it.

        Siblings are tried one after the other, each against what its elders have left of p.
        """
        whole = P_UNIT
        for attempt, row in enumerate(drafts):
            token = nodes.tokens[row - 1]
            q = known.get(nodes.numbers[row - 1]) or certain(token)
            if attempt and not is_complete(q):
                break
            if self.chance.happens(int(p[token]) * Q_UNIT, whole * q[0][1], "accept", path, attempt):
                return token, row
            if not is_complete(q):
                return None
            p = residual(p, whole, q)
            whole = int(p.sum())
        return self.chance.index(p, "residual" if drafts else "target", path), 0
