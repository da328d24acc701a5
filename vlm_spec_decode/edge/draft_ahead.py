"""The edge's draft model alone, about a frame on the way: what it says is sent with a later question.

It costs the cloud and the link nothing, and the draft model would rest meanwhile. Nothing of it is committed.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlm_spec_decode.core.ports import Drafter
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.strategies.base import EdgeConfig, draft_token, forced_run


def draft_ahead(drafter: Drafter, config: EdgeConfig) -> Iterator[Tokens]:
    """Yield the draft's own answer as it grows, all tokens so far, one step after the other."""
    tokens: Tokens = ()
    while not tokens or not config.params.ends(len(tokens), tokens[-1]):
        room = config.params.max_tokens - len(tokens)
        tokens += forced_run(drafter, config.tracer, tokens)[:room] or (draft_token(drafter, tokens, config),)
        yield tokens
