"""Verification: which drafted tokens are accepted, and which token follows them.

Under the `coupled` rule both ends choose with the same noise, so a node is accepted exactly if it is the
target's own choice at that position. The result is therefore the target's own answer for any tree, any
drafter and any loss of drafts (design section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm_spec_decode.core.ports import Logits
from vlm_spec_decode.core.types import SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick


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
    logits: Logits, tokens: Tokens, parents: Tokens, start: int, params: SamplingParams
) -> Verdict:
    """Walk down the verified tree as long as the target agrees, then add its own next token.

    `logits` [1 + n, vocab] are those of `ModelContext.score` for the same `tokens` and `parents`;
    `start` is the number of answer tokens already committed.
    """
    child = {(parent, token): row for row, (token, parent) in enumerate(zip(tokens, parents, strict=True), 1)}
    said: list[int] = []
    row = 0
    while True:
        token = pick(logits[row], start + len(said), params)
        said.append(token)
        finished = token in params.stop_ids or start + len(said) >= params.max_tokens
        accepted = child.get((row, token))
        row = row if accepted is None else accepted
        if finished or accepted is None:
            return Verdict(tuple(said), row, finished)
