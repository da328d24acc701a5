"""The draft tree at the edge: its nodes, which of them to expand next, and which are worth sending.

The weight of a node is the probability of its whole path under the draft, calibrated by the acceptance so
far, and mixed with the guesses of early verdicts. A node gets its number when it is sent: a node that was
held back is sent once it has become likely.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from vlm_spec_decode.core.ports import Drafter
from vlm_spec_decode.core.trace import NO_TRACER, Tracer
from vlm_spec_decode.core.types import DraftMessage, SamplingParams, Tokens
from vlm_spec_decode.decoding.tree import WEIGHT_STEP, quantise
from vlm_spec_decode.strategies.base import draft_step
from vlm_spec_decode.strategies.estimators import FIRST, OTHER, RECALLED, Calibration, RunningMean, TokenKinds
from vlm_spec_decode.strategies.rejection import ProposalLog


@dataclass(slots=True, kw_only=True)
class TreeNode:
    """A node: the token after its parent, the draft's log-probability of it, and whether it is expanded.

    `verdicts` are the exits' guesses of the next token, shallow ones first, each with its trust.
    `is_drawn`: the draft's one draw after its parent (rule `rejection`), the only child that may be sent.
    `sureness` is what the draft itself says of its first choice after this node, once it is expanded, and
    `choice` is that token; -1: not drafted. `is_remembered`: an earlier answer went on so; once the draft has
    scored the parent, what it says of this token counts. `run` is what earlier answers say after this node.
    """

    token: int
    log_prob: float
    parent: TreeNode | None
    depth: int
    number: int = 0
    expanded: bool = False
    children: dict[int, TreeNode] = field(default_factory=dict)
    verdicts: list[tuple[int, float]] = field(default_factory=list)
    is_drawn: bool = False
    sureness: float = 0.0
    choice: int = -1
    is_remembered: bool = False
    run: Tokens = ()

    def path(self) -> Tokens:
        """Return the tokens from the root's child down to this node."""
        tokens: list[int] = []
        node = self
        while node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tuple(reversed(tokens))

    def chance(self, token: int, prior: float) -> float:
        """Return the probability of `token` next: each exit is right with its trust, or knows nothing.

        P(x | e) = t [x = e] + (1 - t) P(x), deeper exits on top of what shallower ones have left.
        """
        for said, trust in self.verdicts:
            # P(x | e) = t [x = e] + (1 - t) P(x)
            prior = (1 - trust) * prior + (trust if said == token else 0.0)
        return prior


CHILDREN = 6
"""Choices kept of one expanded node."""

FLOOR = 0.002
"""Nodes less likely than this are neither expanded nor sent."""

MOSTLY = 0.5
"""Trust in an exit from which on its token is taken for the next one."""

UNFORESEEN = 0.01
"""Probability of a token that the draft has not thought of, before an exit names it."""


MOST_LIKELY = 0.998
"""No node is taken to be likelier after its parent, whatever guesses of its kind have been worth."""


def _kind(node: TreeNode, child: TreeNode) -> int:
    """Return which kind of guess a child is."""
    if not node.expanded:
        return RECALLED
    return FIRST if child.token == node.choice else OTHER


@dataclass(slots=True, kw_only=True)
class DraftTree:
    """The tree below the committed tokens. `base` counts those; `root` stands for them.

    With `kinds` the probabilities of guesses are corrected by what those of their kind have been worth.
    """

    drafter: Drafter
    params: SamplingParams
    proposals: ProposalLog | None = None
    tracer: Tracer = NO_TRACER
    prefix: Tokens = ()
    root: TreeNode = field(default_factory=lambda: TreeNode(token=-1, log_prob=0.0, parent=None, depth=0))
    calibration: Calibration = field(default_factory=Calibration)
    kinds: TokenKinds | None = None
    agreement: RunningMean = field(default_factory=lambda: RunningMean(0.7, trust=2))
    _next_number: int = 1
    _ranking: list[tuple[float, TreeNode]] | None = None
    _sent: dict[int, TreeNode] = field(default_factory=dict)

    @property
    def sent_nodes(self) -> int:
        """How many nodes below the root have been sent."""
        return len(self._sent)

    def ranked(self, floor: float) -> list[tuple[float, TreeNode]]:
        """Return (weight, node) of all nodes likelier than `floor`, likeliest first, root included.

        Parents come before their children. Nothing below `FLOOR` is ranked.
        """
        if self._ranking is None:
            self._ranking = self._rank()
        return [*takewhile(lambda entry: entry[0] >= floor, self._ranking)]

    def _rank(self) -> list[tuple[float, TreeNode]]:
        heap, out, order = [(-1.0, 0, self.root)], list[tuple[float, TreeNode]](), 1
        while heap:
            negative, _, node = heapq.heappop(heap)
            out.append((-negative, node))
            factors = self._factors(node)
            for token, child in node.children.items():
                prior = math.exp(child.log_prob)
                if factors:
                    prior = min(MOST_LIKELY, prior * factors[_kind(node, child)])
                # Weight of a node: the product of the conditional probabilities along its path.
                weight = negative * (node.chance(token, prior) if node.verdicts else prior)
                if -weight >= FLOOR:
                    heapq.heappush(heap, (weight, order, child))
                    order += 1
        return out

    def _factors(self, node: TreeNode) -> tuple[float, ...]:
        """Return what guesses of each kind after a node are corrected by, () if they are not."""
        if self.kinds is None or not node.children:
            return ()
        context = self._context(node)
        return tuple(self.kinds.factor(context, kind) for kind in (FIRST, OTHER, RECALLED))

    def _context(self, node: TreeNode) -> int:
        """Return the token before what follows a node, -1 before the first."""
        return self.prefix[-1] if node.parent is None and self.prefix else node.token

    def leaves(self, floor: float) -> Iterator[tuple[float, TreeNode]]:
        """Yield (weight, node) of all nodes that may be expanded, likeliest first."""
        return ((w, p) for w, p in self.ranked(floor) if not p.expanded and self.may_go_on(p))

    def expand(self, nodes: list[TreeNode]) -> None:
        """Score `nodes` in one batched draft step and add the likeliest tokens after each."""
        rows: dict[int, int] = {id(self.root): 0}
        tokens, parents = list[int](), list[int]()
        for node in nodes:
            self._add_rows(node, rows, tokens, parents)
        asked = tuple(rows[id(node)] for node in nodes)
        choices = draft_step(self.drafter, self.tracer, self.prefix, tuple(tokens), tuple(parents), asked)
        positions = [len(self.prefix) + node.depth for node in nodes]
        rankings = choices.ranked(range(len(nodes)), positions, self.params, CHILDREN, summed=False)
        for row, (node, ranking) in enumerate(zip(nodes, rankings, strict=True)):
            log_probs = self.calibration.log_probs(ranking.scores)
            for child in node.children.values():
                if child.is_remembered:
                    child.log_prob, child.is_remembered = math.log(UNFORESEEN), False
            node.sureness = self.calibration.said(ranking.scores)[0]
            node.choice = ranking.tokens[0]
            for token, log_prob in zip(ranking.tokens, log_probs, strict=True):
                self.offer(node, token, log_prob)
            # Under `rejection` only a draw from q may be sent; the other children are outcomes to prepare
            # for.
            if self.proposals:
                self._draw(node, self.proposals.draw(self.prefix + node.path(), choices, row))
            node.expanded = True

    def offer(self, node: TreeNode, token: int, log_prob: float) -> TreeNode:
        """Add a child, or raise the weight of the one that is there."""
        self._ranking = None
        child = node.children.get(token)
        if child is None:
            child = node.children[token] = TreeNode(
                token=token, log_prob=log_prob, parent=node, depth=node.depth + 1
            )
        child.log_prob = max(child.log_prob, log_prob)
        return child

    def offer_path(self, node: TreeNode, tokens: Iterable[int], log_prob: float) -> None:
        """Add a run of free drafts below `node`."""
        for token in tokens:
            node = self.offer(node, token, log_prob)

    def offer_run(self, node: TreeNode, run: Tokens, log_prob: float) -> None:
        """Add a run of an earlier answer below `node`, as a guess until the draft has come there."""
        for place, token in enumerate(run):
            node.run = run[place:]
            is_new = token not in node.children
            node = self.offer(node, token, log_prob)
            node.is_remembered = is_new

    def adopt(self, draft: DraftMessage) -> None:
        """Take the tree that has gone with the question as sent."""
        rows = zip(draft.tokens, draft.parents, draft.weights or (0,) * len(draft.tokens), strict=True)
        for number, (token, parent, weight) in enumerate(rows, draft.first_node):
            node = self.offer(self._sent[parent] if parent else self.root, token, -WEIGHT_STEP * weight)
            node.number = number
            self._sent[number] = node
        # From the last one up: each node's likeliest child stands first.
        for node in reversed((self.root, *self._sent.values())):
            first = next(iter(node.children.values()), None)
            node.run = (first.token, *first.run) if first else ()
        self._next_number = draft.first_node + len(draft.tokens)

    def advance(self, tokens: Tokens) -> None:
        """Commit `tokens`: re-root where they lead, keep what hangs there, forget the rest."""
        self._learn(tokens)
        self._ranking = None
        node: TreeNode | None = self.root
        for token in tokens:
            node = node.children.get(token) if node else None
        self.prefix += tokens
        self.root = node or TreeNode(token=-1, log_prob=0.0, parent=None, depth=0)
        self.root.parent, self.root.log_prob = None, 0.0
        self._renumber_depths()
        self._sent = {p.number: p for p in self._walk() if p.number}

    def outcome(self, number: int, token: int) -> Tokens | None:
        """Return what would be committed if node `number` were the last accepted and `token` followed."""
        node = self._sent.get(number) if number else self.root
        return (*node.path(), token) if node else None

    def suppose(self, path: Tokens, trusts: Sequence[float]) -> list[float]:
        """Take an early verdict: position i of `path` is right with trust `trusts[i]`.

        Returns what each position's probability was before.
        """
        node, priors, self._ranking = self.root, list[float](), None
        for token, trust in zip(path, trusts, strict=True):
            known = node.children.get(token)
            priors.append(node.chance(token, math.exp(known.log_prob) if known else 0.0))
            child = known or self.offer(node, token, math.log(UNFORESEEN))
            node.verdicts.append((token, trust))
            node = child
        return priors

    def best_path(self) -> tuple[TreeNode, float]:
        """Return the end of what the draft says, and the chance of the path to it.

        The path is the draft's own choices, corrected by exits that are likely right.

        Repeated runs of earlier answers say nothing about this frame, so they lead nowhere here.
        """
        node, chance = self.root, 1.0
        while True:
            trusted = [token for token, trust in node.verdicts if trust > MOSTLY]
            child = node.children.get(trusted[-1] if trusted else node.choice)
            if child is None:
                return node, chance
            # As in `_rank`: the product of the conditional probabilities along the path.
            chance *= node.chance(child.token, math.exp(child.log_prob))
            node = child

    def drawn_chain(self) -> list[TreeNode]:
        """Return the draws below the root, one after the other.

        Under the `rejection` rule this is what may be sent, in this order and all of it: to drop or to choose
        by what was drawn would bias the answer. Other children are outcomes to draft ahead from.
        """
        chain, node = list[TreeNode](), self.root
        while node.children and (drawn := [c for c in node.children.values() if c.is_drawn]):
            node = drawn[0]
            chain.append(node)
        return chain

    def _draw(self, node: TreeNode, token: int) -> None:
        """Mark the draw after `node`: as likely as draws have been accepted, the others share the rest."""
        # P(the draw is accepted) = a; the others share 1 - a in the proportions that the draft gave them.
        accepted = min(0.95, max(0.05, self.agreement.value))
        for child in node.children.values():
            child.log_prob += math.log(1 - accepted)
        drawn = self.offer(node, token, math.log(accepted))
        drawn.is_drawn, node.choice = True, token

    def draft(self, nodes: list[TreeNode], answer: int, epoch: int) -> DraftMessage:
        """Number `nodes` (parents before children) and return the message that sends them."""
        first = self._next_number
        for number, node in enumerate(nodes, first):
            node.number = number
            self._sent[number] = node
        self._next_number += len(nodes)
        parents = tuple(p.parent.number if p.parent and p.parent is not self.root else 0 for p in nodes)
        weights = tuple(quantise(p.log_prob) for p in nodes)
        tokens = tuple(p.token for p in nodes)
        return DraftMessage(answer, epoch, len(self.prefix), first, tokens, parents, weights)

    def may_go_on(self, node: TreeNode) -> bool:
        """Whether anything may follow `node`: the answer has neither ended nor reached its most tokens."""
        length = len(self.prefix) + node.depth
        return node.token not in self.params.stop_ids and length < self.params.max_tokens

    def _add_rows(self, node: TreeNode, rows: dict[int, int], tokens: list[int], parents: list[int]) -> None:
        if id(node) in rows or node.parent is None:
            return
        self._add_rows(node.parent, rows, tokens, parents)
        tokens.append(node.token)
        parents.append(rows[id(node.parent)])
        rows[id(node)] = len(tokens)

    def _learn(self, tokens: Tokens) -> None:
        """Learn from each committed token whose node had been expanded: was it the first choice?"""
        self._learn_kinds(tokens)
        node: TreeNode | None = self.root
        for token in tokens:
            if node is None or not node.expanded:
                return
            ranked = sorted(node.children.values(), key=lambda c: -c.log_prob)
            first = next((c for c in ranked if c.is_drawn), None) or next(iter(ranked), None)
            hit = first is not None and first.token == token
            self.agreement.learn(float(hit))
            if ranked and node.sureness:
                self.calibration.learn(hit, node.sureness)
            node = node.children.get(token)

    def _learn_kinds(self, tokens: Tokens) -> None:
        """Learn from each committed token which kinds of guesses were right there."""
        node: TreeNode | None = self.root
        for token in tokens:
            if self.kinds is None or node is None or not node.children:
                return
            said, hits = [0.0] * 3, [0.0] * 3
            for child in node.children.values():
                kind = _kind(node, child)
                said[kind] += math.exp(child.log_prob)
                hits[kind] += child.token == token
            for kind in (FIRST, OTHER, RECALLED):
                if said[kind]:
                    self.kinds.learn(self._context(node), kind, said[kind], hits[kind])
            node = node.children.get(token)

    def _walk(self) -> Iterable[TreeNode]:
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _renumber_depths(self) -> None:
        self.root.depth = 0
        for node in self._walk():
            assert node.parent is not None
            node.depth = node.parent.depth + 1
