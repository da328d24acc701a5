"""The edge's half of the `rejection` rule: the draws of one answer and the distributions they came from.

Strategies choose which prefixes to draft and do not depend on the rule. Here drafts get their q, and a
commit that leaves its last token to the edge gets it (separate rejection sampling, PicoSpec 2603.19133
section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from vlm_spec_decode.core.ports import Verifier
from vlm_spec_decode.core.trace import NO_TRACER, LinkUsage, Tracer
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    Correction,
    DraftMessage,
    Event,
    Hint,
    MoreSamples,
    SamplingParams,
    Support,
    Tokens,
)
from vlm_spec_decode.decoding.counter_rng import CounterRng, KeyedCounterRng
from vlm_spec_decode.decoding.sampling import Row, pick
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.verify import Q_UNIT, certain, draw_correction, truncated, weights

IDS_OF_SHORT_Q = 3
"""Ids to which a q that travels whole is cut before it is sampled (`residual="cloud"`)."""


@dataclass(slots=True)
class ProposalLog:
    """Draws from the draft's q, one per prefix: a prefix that is drafted again gets the same token."""

    params: SamplingParams
    chance: CounterRng = field(init=False)
    _drawn: dict[Tokens, Support] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = KeyedCounterRng(self.params.seed)

    def draw(self, prefix: Tokens, logits: Row) -> int:
        """Return the draft's token after `prefix`, whose logits [vocab] are `logits`."""
        if self.params.rule == "coupled":
            return pick(logits, len(prefix), self.params)
        # One draw per prefix: a second one would be a second throw of the dice for the same position.
        if prefix not in self._drawn:
            parts = weights(logits, self.params, Q_UNIT)
            if self.params.residual == "cloud":
                parts = truncated(parts, IDS_OF_SHORT_Q)
            token = self.chance.index(parts, "draft", prefix)
            ids = np.flatnonzero(parts)
            others = zip(ids.tolist(), parts[ids].tolist(), strict=True)
            mine = (token, int(parts[token]))
            self._drawn[prefix] = (mine, *(other for other in others if other[0] != token))
        return self._drawn[prefix][0][0]

    def q(self, prefix: Tokens, token: int) -> Support:
        """Return what `token` was drawn from; one that was not drawn here was certain to be proposed."""
        support = self.drawn_from(prefix)
        return support if support and support[0][0] == token else certain(token)

    def along(self, prefix: Tokens, chain: Tokens) -> tuple[Support, ...]:
        """Return what each token of a chain below `prefix` was drawn from."""
        return tuple(self.q(prefix + chain[:depth], token) for depth, token in enumerate(chain))

    def drawn_from(self, prefix: Tokens) -> Support:
        """Return the q from which the token after `prefix` was drawn, () if none was."""
        return self._drawn.get(prefix, ())


@dataclass(slots=True)
class ResidualCorrector(Verifier):
    """A verifier whose commits are complete: what the cloud leaves to the edge is drawn on the way.

    One answer long. Drafts pass with the q that `proposals` remembers. `sequence` is the strategy's: it
    commits every commit that comes out of here before it asks for the next.
    """

    inner: Verifier
    proposals: ProposalLog
    sequence: Sequence
    _paths: dict[int, Tokens] = field(default_factory=dict)

    @property
    def tokens(self) -> Tokens:
        """What is committed."""
        return self.sequence.tokens

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        """Open the answer."""
        self.inner.open(request, tracer)

    def submit(self, hint: Hint) -> None:
        """Pass on, a draft with its q."""
        self.inner.submit(replace(hint, q=self._q(hint)) if isinstance(hint, DraftMessage) else hint)

    def poll(self) -> Event | None:
        """Return the next event, if it is there, as `wait` does."""
        while event := self.inner.poll():
            if complete := self._completed(event):
                return complete
        return None

    def wait(self, timeout_s: float) -> Event:
        """Wait for the next event and draw what it leaves open."""
        while True:
            if complete := self._completed(self.inner.wait(timeout_s)):
                return complete

    def cancel(self) -> None:
        """Pass on."""
        self.inner.cancel()

    def close(self) -> None:
        """Pass on."""
        self.inner.close()

    def disconnect(self) -> None:
        """Pass on."""
        self.inner.disconnect()

    @property
    def usage(self) -> LinkUsage:
        """Pass on."""
        return self.inner.usage

    @property
    def clouds(self) -> str:
        """Pass on."""
        return self.inner.clouds

    def _q(self, draft: DraftMessage) -> tuple[Support, ...]:
        found: list[Support] = []
        numbered = enumerate(zip(draft.tokens, draft.parents, strict=True), start=draft.first_node)
        for number, (token, parent) in numbered:
            prefix = self._paths.get(parent, self.tokens[: draft.base])
            self._paths[number] = (*prefix, token)
            support = self.proposals.q(prefix, token)
            found.append(support if self.proposals.params.residual == "cloud" else support[:1])
        # Where all was certain to be proposed there is no q to send: that is what its absence means.
        return tuple(found) if any(s[0][1] < Q_UNIT for s in found) else ()

    def _completed(self, event: Event) -> Event | None:
        if not isinstance(event, Commit):
            return event
        path = self.tokens + event.tokens[max(0, len(self.sequence) - event.start) :]
        token = self._correction(event, path) if event.start + len(event.tokens) == len(path) else None
        whole = replace(event, residual=None)
        if token is not None:
            finished = self.proposals.params.ends(len(path) + 1, token)
            whole = replace(whole, tokens=(*event.tokens, token), finished=finished)
        return whole if whole.tokens else None

    def _correction(self, commit: Commit, path: Tokens) -> int | None:
        """Draw and send the token after `path`; None if there is none to draw, or not yet."""
        target = commit.residual
        if target is None:
            return None
        drawn = self.proposals.drawn_from(path)
        # Draw from norm(max(0, p - q)) here, where q is (separate rejection sampling, 2603.19133 section 3).
        token = draw_correction(target, drawn, self.proposals.chance, path)
        if token is None:
            # All tail samples were refused: ask for four times as many. The first ones repeat, so the law
            # stays exact.
            count = 4 * (len(target.tail) + 1)
            self.inner.submit(MoreSamples(commit.answer, commit.epoch, len(path), count))
        else:
            self.inner.submit(Correction(commit.answer, commit.epoch, len(path), token))
        return token
