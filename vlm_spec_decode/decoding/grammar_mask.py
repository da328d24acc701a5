"""A model restricted to a grammar: the same logits, and -inf for tokens that are not allowed.

Both ends decode with masked models, so p and q are the masked distributions and the rest of decoding is
independent of grammars (design section 2). Uses grammars only through their port.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.choices import Choices, LegalTokens, Logits
from vlm_spec_decode.core.errors import GrammarError, VsdError
from vlm_spec_decode.core.ports import (
    NO_NODES,
    ExitHook,
    Grammar,
    GrammarState,
    Mask,
    ModelContext,
    OnExit,
    Rows,
    Scored,
    ScoreRequest,
    Scores,
    Tree,
    WrappedModel,
)
from vlm_spec_decode.core.types import Chat, Observation, Tokens
from vlm_spec_decode.decoding.choices import as_choices, as_logits


@dataclass(frozen=True, slots=True)
class MaskedModel(WrappedModel):
    """`inner` with every answer held to `grammar`, which has a digest of its own; None: as it is.

    A chat is held to what `of_chat` says of it; without that function, chats are refused.
    """

    grammar: Grammar | None
    of_chat: Callable[[Chat], Grammar | None] | None = None

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer. Raises ImageError for an image, GrammarError for a chat's form."""
        grammar = self.grammar
        if observation.chat is not None:
            if self.of_chat is None:
                raise GrammarError("this model is held to one language, and takes no chats")
            grammar = self.of_chat(observation.chat)
        context = self.inner.open(observation)
        return context if grammar is None else MaskedContext(context, GrammarWalk(grammar))

    def score_batch(self, queries: Seq[ScoreRequest]) -> list[Scored]:
        """Score many contexts in one pass of the inner model, each masked by its own walk."""
        shares = [_unmask(query) for query in queries]
        inner = [share[0] for share in shares if not isinstance(share, VsdError)]
        scored = iter(self.inner.score_batch(inner))
        return [share if isinstance(share, VsdError) else _mask(share[1], next(scored)) for share in shares]


@dataclass(slots=True)
class _GrammarNode:
    """A prefix of the answer: the grammar's state there, its mask once asked for, what was tried after it.

    `known` are the masks of all places of a walk, by their bits: most places share one of a few.
    """

    state: GrammarState
    known: dict[bytes, LegalTokens]
    children: dict[int, _GrammarNode | None] = field(default_factory=dict)
    _legal: LegalTokens | None = None
    _ended: bool = False

    def legal(self) -> LegalTokens | None:
        """Return the legal next tokens, computed once; None at the answer's end."""
        if self._legal is None and not self._ended:
            legal = self.state.legal()
            self._ended = legal is None
            if legal is not None:
                # None means the answer's end; no legal token before that is a grammar that cannot go on.
                if not legal.bits.any():
                    raise GrammarError("the grammar leaves no token legal although the answer has not ended")
                self._legal = self.known.setdefault(legal.bits.tobytes(), legal)
        return self._legal

    def mask(self) -> Mask | None:
        """Return the same as a mask [vocab]."""
        legal = self.legal()
        return None if legal is None else legal.mask

    def child(self, token: int) -> _GrammarNode | None:
        """Return the node after `token`, None if the token is not legal here."""
        if token not in self.children:
            legal = self.legal()
            is_legal = legal is not None and legal.has(token)
            # An illegal token is kept as None: the same wrong draft is then judged without the grammar.
            self.children[token] = _GrammarNode(self.state.after(token), self.known) if is_legal else None
        return self.children[token]


class GrammarWalk:
    """The places that one answer and its drafts have visited; each state is computed once.

    Kept for the whole answer: a state is a few kilobytes, and places with equal masks hold one together.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._root = _GrammarNode(grammar.start(), {})

    def at(self, prefix: Tokens) -> _GrammarNode:
        """Return the place after `prefix`. Raises GrammarError if the prefix is not of the grammar."""
        place = self._root
        for depth, token in enumerate(prefix):
            following = place.child(token)
            if following is None:
                raise GrammarError(f"token {token} at position {depth} of the answer is not of the grammar")
            place = following
        return place

    def below(
        self, prefix: Tokens, tokens: Tokens, parents: Tokens, rows: Tokens | None = None
    ) -> list[LegalTokens | None]:
        """Return the legal tokens of every row that `ModelContext.choose` returns for the same tree.

        None where nothing is masked: after the answer's end, and at or below a node that the grammar does
        not allow. Such rows decide nothing, for no walk from the prefix reaches them.
        """
        root = self.at(prefix)
        if root.legal() is None:
            raise GrammarError("the grammar's end token is not one of the tokens that end this answer")
        places: list[_GrammarNode | None] = [root]
        for token, parent in zip(tokens, parents, strict=True):
            above = places[parent]
            # Below an illegal token everything is illegal; its rows keep their logits, which nobody reads.
            places.append(above.child(token) if above is not None else None)
        asked = places if rows is None else [places[row] for row in rows]
        return [place.legal() if place is not None else None for place in asked]

    def forced(self, prefix: Tokens) -> Tokens:
        """Return the run of single legal tokens after `prefix`; () after one that is not of the grammar.

        Such a prefix is a draft from elsewhere (an earlier answer, say); it can only be rejected.
        """
        run: list[int] = []
        place: _GrammarNode | None = self._root
        for token in prefix:
            place = place.child(token) if place is not None else None
        # One legal token has probability 1 under the mask, for every p and q: no pass can say another.
        while place is not None and (legal := place.legal()) is not None and legal.count == 1:
            run.append(int(legal.ids[0]))
            place = place.child(run[-1])
        return tuple(run)


@dataclass(slots=True)
class MaskedContext(ModelContext):
    """`ModelContext` whose logits are -inf where the grammar says no, early exits' logits included."""

    inner: ModelContext
    walk: GrammarWalk

    @property
    def verifies_trees(self) -> bool:
        """Pass on."""
        return self.inner.verifies_trees

    def prefill(self) -> None:
        """Pass on."""
        self.inner.prefill()

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Choices:
        """Return the rows with only legal tokens.

        Raises GrammarError if `prefix` is not of the grammar or goes beyond its end.
        """
        allowed = self.walk.below(prefix, *tree, rows)
        hook = self._masked_hook(prefix, *tree, on_exit)
        return _masked(self.inner.choose(prefix, tree, hook, rows), allowed)

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return masked logits [1 + n, vocab]. Raises GrammarError as `choose`."""
        return as_logits(self, prefix, (tokens, parents), on_exit)

    def unmasked(self, query: ScoreRequest) -> tuple[ScoreRequest, list[LegalTokens | None]]:
        """Return a query of this context as the inner one takes it, and the legal tokens of its rows.

        Raises GrammarError as `choose` does.
        """
        allowed = self.walk.below(query.prefix, query.tokens, query.parents, query.rows)
        hook = self._masked_hook(query.prefix, query.tokens, query.parents, query.on_exit)
        return replace(query, context=self.inner, on_exit=hook), allowed

    def _masked_hook(
        self, prefix: Tokens, tokens: Tokens, parents: Tokens, on_exit: ExitHook | None
    ) -> ExitHook | None:
        """Return a listener to the inner model's exits that passes on what is legal of each."""
        if on_exit is None:
            return None
        allowed = self.walk.below(prefix, tokens, parents)
        return lambda exit_layer, scores: on_exit(exit_layer, _masked(scores, allowed))

    @property
    def kv_bytes(self) -> int:
        """Pass on."""
        return self.inner.kv_bytes

    def forget(self) -> None:
        """Pass on."""
        self.inner.forget()

    def exit_chance(self, exit_layer: int, confidence: float) -> float:
        """Pass on."""
        return self.inner.exit_chance(exit_layer, confidence)

    def forced(self, prefix: Tokens) -> Tokens:
        """Return the run of single legal tokens after `prefix`."""
        return self.walk.forced(prefix)

    def close(self) -> None:
        """Pass on."""
        self.inner.close()


def _unmask(query: ScoreRequest) -> tuple[ScoreRequest, list[LegalTokens | None]] | GrammarError:
    if not isinstance(query.context, MaskedContext):
        return query, []  # an answer that is held to nothing
    try:
        return query.context.unmasked(query)
    except GrammarError as error:
        return error


def _mask(allowed: list[LegalTokens | None], scored: Scored) -> Scored:
    return scored if isinstance(scored, VsdError) or not allowed else _masked(scored, allowed)


def _masked(scores: Scores, allowed: list[LegalTokens | None]) -> Choices:
    """Return the rows with the probability of illegal tokens at 0.

    What is left is p(x | x legal), before temperature and cuts, at both ends alike. Raises GrammarError if a
    mask is not as wide as the vocabulary.
    """
    return as_choices(scores).legal(allowed)
