"""The edge's half of the `rejection` rule: the draws of one answer and the distributions they came from.

Strategies choose which prefixes to draft and do not depend on the rule. Here drafts get their q, and a
commit that leaves its last token to the edge gets it (separate rejection sampling, PicoSpec 2603.19133
section 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.choices import Distribution
from vlm_spec_decode.core.ports import Scores, Verifier
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
from vlm_spec_decode.decoding.choices import Q_UNIT, Remainder, SparseDistribution, as_choices
from vlm_spec_decode.decoding.counter_rng import CounterRng, KeyedCounterRng
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.verify import certain, draw_correction, truncated

IDS_OF_SHORT_Q = 3
"""Ids to which a q that travels whole is cut before it is sampled (`residual="cloud"`)."""


@dataclass(slots=True)
class ProposalLog:
    """Draws from the draft's q, one per prefix: a prefix that is drafted again gets the same token."""

    params: SamplingParams
    chance: CounterRng = field(init=False)
    _drawn: dict[Tokens, tuple[int, Distribution]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = KeyedCounterRng(self.params.seed)

    def draw(self, prefix: Tokens, scores: Scores, row: int = 0) -> int:
        """Return the draft's token after `prefix`, of which row `row` is what the draft says."""
        choices = as_choices(scores)
        if self.params.rule == "coupled":
            return choices.pick((row,), (len(prefix),), self.params)[0]
        # One draw per prefix: a second one would be a second throw of the dice for the same position.
        if prefix not in self._drawn:
            q = choices.distribution(row, self.params, Q_UNIT)
            if self.params.residual == "cloud":
                q = SparseDistribution(truncated(q, IDS_OF_SHORT_Q))
            self._drawn[prefix] = (self.chance.draw(Remainder(q), "draft", prefix), q)
        return self._drawn[prefix][0]

    def q(self, prefix: Tokens, token: int) -> Support:
        """Return what `token` was drawn from; one that was not drawn here was certain to be proposed."""
        drawn, q = self._drawn.get(prefix, (None, None))
        if drawn != token or q is None:
            return certain(token)
        return ((token, q.part(token)), *(other for other in q.support() if other[0] != token))

    def sent_q(self, prefix: Tokens, token: int) -> Support:
        """Return what of it travels: all of a short q where the cloud corrects, else the own weight alone."""
        if self.params.residual == "cloud":
            return self.q(prefix, token)
        drawn, q = self._drawn.get(prefix, (None, None))
        return certain(token) if drawn != token or q is None else ((token, q.part(token)),)

    def along(self, prefix: Tokens, chain: Tokens) -> tuple[Support, ...]:
        """Return what each token of a chain below `prefix` was drawn from."""
        return tuple(self.q(prefix + chain[:depth], token) for depth, token in enumerate(chain))

    def weights_of(self, prefix: Tokens, tokens: Iterable[int]) -> Support:
        """Return the weights that `tokens` had in the q drawn from after `prefix`; () if none was drawn."""
        _, q = self._drawn.get(prefix, (None, None))
        return () if q is None else tuple((token, q.part(token)) for token in tokens)


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
    def shares_processor(self) -> bool:
        """Pass on."""
        return self.inner.shares_processor

    @property
    def target_bytes(self) -> int:
        """Pass on."""
        return self.inner.target_bytes

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
            found.append(self.proposals.sent_q(prefix, token))
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
        # The law of the correction needs q only of the ids that have come down.
        drawn = self.proposals.weights_of(path, {*target.ids, *(token for token, _ in target.tail)})
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
