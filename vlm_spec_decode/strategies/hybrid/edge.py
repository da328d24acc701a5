"""`hybrid`'s edge half: the speculation tree is sent while it grows, and the cloud does not wait for it.

Edge: until the answer ends, expand the likeliest nodes in batched draft steps and send those that are likely
enough; early verdicts re-weight the candidates; a commit re-roots the tree. Cloud: the next pass starts
when the last one ends and holds the likeliest part of the tree that has arrived, else a plain step, a
draft of its own, or nothing while waiting for a draft message pays (`hybrid.cloud_policy`).
"""

from __future__ import annotations

from collections.abc import Iterator

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, EarlyExitVerdict, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy
from vlm_spec_decode.strategies.hybrid.cloud_policy import Cloud
from vlm_spec_decode.strategies.hybrid.draft_tree import DraftTree
from vlm_spec_decode.strategies.hybrid.edge_controller import EdgeController
from vlm_spec_decode.strategies.hybrid.prompt_lookup import PromptLookup


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Grow, send, listen: in this order of ignorance, for listening costs nothing."""
    growth = DraftTree(drafter, config.params, config.proposals)
    if config.sent:
        growth.adopt(config.sent)
    control = EdgeController(config, clock)
    free = PromptLookup(config.hints)
    free.offer(growth, drafter)
    while not sequence.finished:
        event = verifier.poll()
        if event is None and (places := control.worth_expanding(growth)):
            with control.draft_step(len(places)):
                growth.expand(places)
            free.offer(growth, drafter)
        elif event is None:
            event = verifier.wait(config.timeout_s)
        if isinstance(event, EarlyExitVerdict):
            control.hear(event, growth)
        elif event is not None:
            control.learn(event)
            new = sequence.commit(event)
            growth.advance(new)
            free.offer(growth, drafter)
            yield new
        if not sequence.finished and (ready := control.worth_sending(growth)):
            verifier.submit(growth.draft(ready, config.answer, config.epoch))


STRATEGY = Strategy(
    name="hybrid",
    edge=edge,
    cloud=Cloud,
    drafts=True,
    source="ours; docs/decoding.md",
    recalls=True,
    rules=RULES,
)
