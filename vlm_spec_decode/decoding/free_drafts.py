"""Free drafts: what earlier answers say of the next tokens, found in a suffix automaton, at no model's step.

Answers of a small world repeat: how an answer to a like instruction began, the list of what is in view, the
phrases around the actions. The longest match of instruction and answer so far is looked up, and what
followed it is a tree of drafts: SAM-Decoding (arXiv 2411.10666) with branches. A hint like every draft: it
changes no token. How far matches of each length are to be trusted is learned from what was said.

The automaton is that of Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text": a
state stands for all substrings that end at the same positions. A token is added in amortised constant time,
a match of n tokens is found in n steps, whatever the size of the text.
"""

from __future__ import annotations

import heapq
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vlm_spec_decode.core.types import Tokens

MOST_SUFFIXES = 64
"""Suffixes of a new token whose counts are brought up to date; only one repeated token has longer chains."""

ROOT = 0

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Match:
    """The longest suffix of a query that the text holds: its state, and its `length` in tokens."""

    state: int = ROOT
    length: int = 0


@dataclass(slots=True)
class SuffixAutomaton:
    """The automaton of one growing text. Tokens are any ints.

    For each state: `_follows` [token -> state], `_links` to the state of the longest suffix that ends
    elsewhere too, `_lengths` of its longest string, `_counts` of its occurrences and `_ends`, the position of
    the latest one.
    """

    _text: list[int] = field(default_factory=list)
    _follows: list[dict[int, int]] = field(default_factory=lambda: [{}])
    _links: list[int] = field(default_factory=lambda: [-1])
    _lengths: list[int] = field(default_factory=lambda: [0])
    _counts: list[int] = field(default_factory=lambda: [0])
    _ends: list[int] = field(default_factory=lambda: [-1])
    _last: int = ROOT

    def __len__(self) -> int:
        """Return the number of tokens of the text."""
        return len(self._text)

    @property
    def num_states(self) -> int:
        """Return the number of states, at most twice the number of tokens."""
        return len(self._links)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end of the text."""
        for token in tokens:
            self._add(token)

    def match(self, query: Sequence[int]) -> Match:
        """Return the longest suffix of `query` that occurs in the text."""
        state, length = ROOT, 0
        for token in query:
            # Shorter and shorter suffixes, until one goes on with the token.
            while state != ROOT and token not in self._follows[state]:
                state = self._links[state]
                length = self._lengths[state]
            if token in self._follows[state]:
                state, length = self._follows[state][token], length + 1
            else:
                length = 0
        return Match(state, length)

    def after(self, match: Match) -> dict[int, Match]:
        """Return the tokens that followed a match, each with the match that it makes."""
        follows = self._follows[match.state]
        return {token: Match(state, match.length + 1) for token, state in follows.items()}

    def count(self, match: Match) -> int:
        """Return how often a match occurs in the text."""
        return self._counts[match.state]

    def latest(self, match: Match) -> int | None:
        """Return what followed the latest occurrence of a match, None at the end of the text."""
        end = self._ends[match.state]
        return self._text[end + 1] if match.length and end + 1 < len(self._text) else None

    def _add(self, token: int) -> None:
        new, before = self._state(self._lengths[self._last] + 1, {}), self._last
        self._text.append(token)
        while before != -1 and token not in self._follows[before]:
            self._follows[before][token] = new
            before = self._links[before]
        self._links[new] = ROOT if before == -1 else self._suffix(before, token)
        self._last = new
        # Every suffix of the text has one occurrence more, and this is its latest.
        state, end = new, len(self._text) - 1
        for _ in range(MOST_SUFFIXES):
            if state in (-1, ROOT):
                break
            self._counts[state] += 1
            self._ends[state] = end
            state = self._links[state]

    def _suffix(self, before: int, token: int) -> int:
        """Return the state of (longest string of `before`, `token`), split off where it has to be."""
        found = self._follows[before][token]
        if self._lengths[found] == self._lengths[before] + 1:
            return found
        # The string ends here too, longer ones of the same state do not: it gets a state of its own.
        split = self._state(self._lengths[before] + 1, dict(self._follows[found]))
        self._links[split], self._links[found] = self._links[found], split
        self._counts[split], self._ends[split] = self._counts[found], self._ends[found]
        while before != -1 and self._follows[before].get(token) == found:
            self._follows[before][token] = split
            before = self._links[before]
        return split

    def _state(self, length: int, follows: dict[int, int]) -> int:
        self._lengths.append(length)
        self._follows.append(follows)
        self._links.append(-1)
        self._counts.append(0)
        self._ends.append(-1)
        return len(self._lengths) - 1


ANSWERED = -1
"""Stands between an instruction and the answer to it."""

MAX_TOKENS = 8192
"""Tokens of answers and instructions that are kept, in two halves: the older one is dropped as a whole."""

LONGEST = 16
"""Tokens that are looked up at most; what precedes them has no say."""

PRIORS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8)
"""How often what followed matches of 0, 1, 2, … tokens is said again, before it is known."""

TRUST, FORGETS = 8.0, 0.98
"""Observations that a prior counts for, and what an observation still counts for after the next one."""

LATEST = 0.5
"""Part of the trust that the latest occurrence has for itself; all occurrences share the rest."""


@dataclass(frozen=True, slots=True)
class FreeDraft:
    """A tree of drafts below a prefix. Node i, from 1 on, is `tokens[i - 1]`; parents come before children.

    `chances` are the probabilities of each node given its parent, `lengths` those of the matches that it
    comes from.
    """

    tokens: Tokens = ()
    parents: Tokens = ()
    chances: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()

    def rows(self) -> Iterator[tuple[int, int, float]]:
        """Yield (token, parent, P(token | parent)) of each node."""
        return zip(self.tokens, self.parents, self.chances, strict=True)

    def only(self, kept: Sequence[int], reached: Sequence[float]) -> FreeDraft:
        """Return the nodes `kept`, parents before children, if node i is reached as often as `reached[i]`."""
        number = {node: place for place, node in enumerate(kept, 1)} | {0: 0}
        parents = [self.parents[node - 1] for node in kept]
        return FreeDraft(
            tuple(self.tokens[node - 1] for node in kept),
            tuple(number[parent] for parent in parents),
            tuple(reached[n] / max(reached[p], 1e-9) for n, p in zip(kept, parents, strict=True)),
            tuple(self.lengths[node - 1] for node in kept),
        )

    def best(self) -> Tokens:
        """Return the likeliest run of tokens: the first child everywhere."""
        run, node = list[int](), 0
        for number, (token, parent, _) in enumerate(self.rows(), 1):
            if parent == node:
                run.append(token)
                node = number
        return tuple(run)

    def children(self) -> dict[int, dict[int, int]]:
        """Return for each node with children their numbers by token."""
        found = dict[int, dict[int, int]]()
        for number, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True), 1):
            found.setdefault(parent, {})[token] = number
        return found

    def along(self, said: Tokens) -> Iterator[tuple[int, bool]]:
        """Yield for each token of what was said the match's length there, and whether a node had it."""
        children, node = self.children(), 0
        for token in said:
            if node not in children:
                return
            length = self.lengths[next(iter(children[node].values())) - 1]
            node = children[node].get(token, -1)
            yield length, node > 0


@dataclass(slots=True)
class FreeDrafts:
    """The answers that one robot, or a fleet, has been given; safe for several threads.

    The memory is bounded by `max_tokens`: of two automata the newer one grows, and the older one is dropped
    when the newer one has half of them.
    """

    max_tokens: int = MAX_TOKENS
    _trusts: list[tuple[float, float]] = field(default_factory=lambda: [(p * TRUST, TRUST) for p in PRIORS])
    _halves: list[SuffixAutomaton] = field(default_factory=lambda: [SuffixAutomaton()])
    _separators: int = 0
    _records: dict[object, object] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_tokens(self) -> int:
        """Return how many tokens are kept."""
        return sum(len(half) for half in self._halves)

    def add(self, instruction: str, answer: Tokens) -> None:
        """Keep an answer."""
        with self._lock:
            if 2 * len(self._halves[-1]) >= self.max_tokens:
                self._halves = [self._halves[-1], SuffixAutomaton()]
            # A separator of its own: no match reaches from one answer into the next.
            self._separators += 1
            self._halves[-1].extend((*words(instruction), *answer, ANSWERED - self._separators))

    def recall(self, instruction: str, said: Tokens, *, most: int, floor: float) -> FreeDraft:
        """Return what may follow `said`: at most so many nodes, each reached with at least `floor`."""
        with self._lock:
            half, match = self._longest(instruction, said)
            return self._grown(half, match, most, floor)

    def run(self, instruction: str, said: Tokens, *, most: int, least: int = 0) -> Tokens:
        """Return the likeliest run after `said`, to the end of an answer, at most so many tokens.

        () if fewer than `least` tokens match.
        """
        found = list[int]()
        with self._lock:
            half, match = self._longest(instruction, said)
            while match.length >= least and len(found) < most and (following := self._next(half, match)):
                token, _, match = following[0]
                found.append(token)
        return tuple(found)

    def record(self, make: Callable[[], Record]) -> Record:
        """Return what somebody has learned beside these answers: one thing for each `make`, made once."""
        with self._lock:
            if make not in self._records:
                self._records[make] = make()
            found: Record = self._records[make]  # type: ignore[assignment]
        return found

    def learn(self, draft: FreeDraft, said: Tokens) -> None:
        """Learn from what was said below the prefix of a draft how far matches are to be trusted."""
        with self._lock:
            for length, is_right in draft.along(said):
                # Of the last 1 / (1 - FORGETS) observations, which share was right?
                right, seen = self._trusts[length]
                self._trusts[length] = (FORGETS * right + is_right, FORGETS * seen + 1)

    def trust(self, length: int) -> float:
        """Return how often what followed a match of so many tokens is said again."""
        right, seen = self._trusts[min(length, len(PRIORS) - 1)]
        return right / seen

    def _longest(self, instruction: str, said: Tokens) -> tuple[SuffixAutomaton, Match]:
        """Return the longest match of the last tokens, of equally long ones that in the newer half."""
        query = (*words(instruction), *said)[-LONGEST:]
        matches = ((half, half.match(query)) for half in reversed(self._halves))
        return max(matches, key=lambda pair: pair[1].length)

    def _grown(self, half: SuffixAutomaton, match: Match, most: int, floor: float) -> FreeDraft:
        """Grow the tree at its likeliest leaves."""
        tokens, parents, chances, lengths = list[int](), list[int](), list[float](), list[int]()
        heap = [(-1.0, 0, match)]
        while heap and len(tokens) < most:
            negative, node, match = heapq.heappop(heap)
            length = min(match.length, len(PRIORS) - 1)
            for token, chance, following in self._next(half, match):
                if -negative * chance < floor or len(tokens) == most:
                    break
                tokens.append(token)
                parents.append(node)
                chances.append(chance)
                lengths.append(length)
                heapq.heappush(heap, (negative * chance, len(tokens), following))
        return FreeDraft(tuple(tokens), tuple(parents), tuple(chances), tuple(lengths))

    def _next(self, half: SuffixAutomaton, match: Match) -> list[tuple[int, float, Match]]:
        """Return (token, P(token), match) of what followed a match, likeliest first."""
        trust = self.trust(match.length)
        total, latest = max(1, half.count(match)), half.latest(match)
        # P(x) = t (λ [x = latest] + (1 - λ) count(x) / count): what is in view stays in view for a while.
        found = [
            (token, trust * (LATEST * (token == latest) + (1 - LATEST) * half.count(after) / total), after)
            for token, after in half.after(match).items()
            if token >= 0
        ]
        return sorted(found, key=lambda row: -row[1])


MAX_OWNERS = 256
"""Owners whose answers are kept; those that were not heard of for longest are forgotten."""


@dataclass(slots=True)
class Memories:
    """The answers of each owner, apart: nobody's drafts tell of another one's answers."""

    most: int = MAX_OWNERS
    _of: OrderedDict[bytes, FreeDrafts] = field(default_factory=OrderedDict)

    def of(self, owner: bytes) -> FreeDrafts:
        """Return the answers that an owner has been given."""
        found = self._of.setdefault(owner, FreeDrafts())
        self._of.move_to_end(owner)
        if len(self._of) > self.most:
            self._of.popitem(last=False)
        return found


def words(instruction: str) -> Tokens:
    """Return an instruction as tokens that no vocabulary has, one a word, with the mark of the answer."""
    # Below all marks between answers, whatever their number is.
    hashed = (-(1 << 40) - zlib.crc32(word.encode()) for word in instruction.lower().split())
    return (*hashed, ANSWERED)
