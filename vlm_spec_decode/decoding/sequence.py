"""The committed tokens of one answer, the only mutable object in decoding, and where they end in its text."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.ports import TextCodec
from vlm_spec_decode.core.types import Commit, Tokens


@dataclass(slots=True)
class Sequence:
    """Committed answer tokens; only commits extend it.

    `prompt_len` is the number of prompt tokens before the answer (0 where only the model knows),
    `epoch` the connection epoch whose commits are accepted.
    """

    prompt_len: int = 0
    epoch: int = 0
    finished: bool = False
    _tokens: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> Tokens:
        """All committed tokens."""
        return tuple(self._tokens)

    def peek(self, commit: Commit) -> Tokens:
        """Return the tokens that `commit` would add: () if it is stale, of another epoch or ahead."""
        # Tokens of the commit that are here already; negative if some before it are missing.
        known = len(self._tokens) - commit.start
        if self.finished or commit.epoch != self.epoch or known < 0:
            return ()
        return commit.tokens[known:]

    def is_gap(self, commit: Commit) -> bool:
        """Tell whether tokens before `commit` have been lost on the way and must be asked for."""
        return commit.epoch == self.epoch and commit.start > len(self._tokens)

    def commit(self, commit: Commit) -> Tokens:
        """Append what is new in `commit` and return it. Applying a commit twice changes nothing."""
        new = self.peek(commit)
        self._tokens.extend(new)
        reached = commit.start + len(commit.tokens) == len(self._tokens)
        if commit.finished and commit.epoch == self.epoch and reached:
            self.finished = True
        return new


def token_ends(codec: TextCodec, tokens: Tokens, text: str) -> tuple[int, ...]:
    """Return for each token how many characters of the answer lead up to its end; they never fall.

    A token may end in the middle of a character, whose bytes the next one completes.
    """
    ends, last = [], 0
    for count in range(1, len(tokens)):
        so_far = codec.decode(tokens[:count])
        if text.startswith(so_far):
            last = max(last, len(so_far))
        ends.append(last)
    return (*ends, len(text)) if tokens else ()
