"""A suffix automaton over token sequences: what followed the longest match of the last tokens, and how often.

Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; as a source of drafts in
SAM-Decoding (arXiv 2411.10666). A state stands for all substrings that end at the same positions. A token is
added in amortised constant time, a match of n tokens is found in n steps, whatever the size of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_SUFFIXES = 64
"""Suffixes of a new token whose counts are brought up to date; only one repeated token has longer chains."""

ROOT = 0


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
