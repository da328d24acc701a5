"""What every strategy's two halves are, and the steps that their algorithms share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from vlm_spec_decode.core.choices import Choices
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.trace import NO_TRACER, Tracer
from vlm_spec_decode.core.types import Commit, DraftMessage, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import chain_parents
from vlm_spec_decode.strategies.estimators import DraftRecord
from vlm_spec_decode.strategies.preview import DraftPreview
from vlm_spec_decode.strategies.rejection import ProposalLog, ResidualCorrector


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig:
    """Settings and inputs of one answer's edge half, beside its ports.

    `draft_length` is γ, the tokens drafted per round; `timeout_s` bounds every wait for the cloud.
    `hints` are token runs that the answer may repeat (instruction, previous answer), `recall` gives what
    followed the tokens so far in earlier answers, () if fewer of them match than its second argument says
    (`decoding.free_drafts`), `sent` is the draft that was sent with the question. What is less likely than
    `draft_floor`, corrected by what guesses of its kind have been worth, is neither drafted nor sent.
    `uplink_bps` is the share of the uplink for drafts.
    `tracer` is told of draft steps and of the reason of each decision of a controller. `record` is what
    earlier answers have shown of the draft; an algorithm that learns from answer to answer learns there.
    `preview` is offered the draft's best path, where somebody wants to see it before it is committed.
    """

    answer: int
    params: SamplingParams
    draft_length: int = 4
    timeout_s: float = 30.0
    epoch: int = 0
    proposals: ProposalLog | None = None
    hints: tuple[Tokens, ...] = ()
    recall: Callable[[Tokens, int], Tokens] | None = None
    draft_floor: float = 0.0
    uplink_bps: float = 1e9
    objective: str = "latency"
    sent: DraftMessage | None = None
    tracer: Tracer = NO_TRACER
    record: DraftRecord = field(default_factory=DraftRecord)
    preview: DraftPreview | None = None


EdgePolicy: TypeAlias = Callable[[Sequence, Drafter, Verifier, Clock, EdgeConfig], Iterator[Tokens]]
"""The edge half: a generator of committed tokens; it ends when the sequence is finished.

No tokens mean that `EdgeConfig.preview` holds something new.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A decoding strategy: both halves, whether the edge drafts, and its source.

    `waits_for_drafts`: without a draft of the edge the cloud half may never begin the next pass. While the
    edge may not draft, such answers are decoded without drafts, by another strategy.
    `needs_helper`: the cloud half needs a copy of the draft beside the target. `recalls`: it can use a
    draft that is sent with the question. `rules` are those under which it is exact.
    """

    name: str
    edge: EdgePolicy
    cloud: Callable[[], CloudPolicy]
    drafts: bool
    source: str
    waits_for_drafts: bool = True
    needs_helper: bool = False
    recalls: bool = False
    rules: tuple[str, ...] = ("coupled",)

    def __post_init__(self) -> None:
        """Raises ConfigError if `cloud` does not make a `CloudPolicy`."""
        try:
            policy: object = self.cloud()
        except TypeError as error:  # what Python says of a class whose `next_pass` is missing
            raise ConfigError(f"strategy {self.name!r}: its cloud half cannot be made: {error}") from error
        if not isinstance(policy, CloudPolicy):
            raise ConfigError(f"strategy {self.name!r}: its cloud half is no decoding.policy.CloudPolicy")

    def decode(
        self, sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
    ) -> Iterator[Tokens]:
        """Run the edge half under the rule of `config.params`: what callers use instead of `edge`."""
        if config.params.rule not in self.rules:
            raise ConfigError(f"strategy {self.name!r} works under rule {', '.join(self.rules)} so far")
        if config.params.rule == "rejection":
            # The algorithm knows no rule: on the way drafts get their q, and commits their corrections.
            proposals = ProposalLog(config.params)
            verifier = ResidualCorrector(verifier, proposals, sequence)
            config = replace(config, proposals=proposals)
        return self.edge(sequence, drafter, verifier, clock, config)


def draft_step(
    drafter: Drafter,
    tracer: Tracer,
    prefix: Tokens,
    tokens: Tokens = (),
    parents: Tokens = (),
    rows: Tokens | None = None,
) -> Choices:
    """Run a tree below `prefix` through the draft model (see `ModelContext.choose`), and tell the tracer."""
    tracer.drafting()
    scores = drafter.choose(prefix, (tokens, parents), rows=rows)
    tracer.drafted(len(prefix), parents)
    return as_choices(scores)


def tree_of(paths: Iterable[Tokens]) -> tuple[Tokens, Tokens, Tokens]:
    """Return (tokens, parents, rows) of the smallest tree with all paths; rows are those of their ends."""
    index: dict[Tokens, int] = {(): 0}
    tokens, parents, ends = list[int](), list[int](), list[int]()
    for path in paths:
        for depth in range(1, len(path) + 1):
            if path[:depth] not in index:
                tokens.append(path[depth - 1])
                parents.append(index[path[: depth - 1]])
                index[path[:depth]] = len(tokens)
        ends.append(index[path])
    return tuple(tokens), tuple(parents), tuple(ends)


def forced_run(drafter: Drafter, tracer: Tracer, prefix: Tokens) -> Tokens:
    """Return the tokens that the grammar forces after `prefix`, at no draft step, and tell the tracer."""
    run = drafter.forced(prefix)
    tracer.forced(len(prefix), len(run))
    return run


def draft_token(drafter: Drafter, prefix: Tokens, config: EdgeConfig) -> int:
    """Draft the token after `prefix`: one step, chosen as the answer's rule says."""
    return choose(draft_step(drafter, config.tracer, prefix), 0, prefix, config)


def choose(choices: Choices, row: int, prefix: Tokens, config: EdgeConfig) -> int:
    """Choose the draft's token after `prefix`, whose row is `row`, as the answer's rule says."""
    if config.proposals:
        return config.proposals.draw(prefix, choices, row)
    return choices.pick((row,), (len(prefix),), config.params)[0]


def draft_chain(drafter: Drafter, prefix: Tokens, config: EdgeConfig, chain: Tokens = ()) -> Tokens:
    """Draft up to γ tokens after `prefix`, going on from `chain`; stop early at the answer's end.

    A token that the grammar forces costs no step, any other one. A chain is shorter where no step may be run;
    raises OverBudget if there is none to begin with.
    """
    if chain and chain[-1] in config.params.stop_ids:
        return chain
    # Drafts beyond the answer's end could never be accepted.
    room = min(config.draft_length, config.params.max_tokens - len(prefix))
    while len(chain) < room and (drafter.may_step or not chain):
        # The grammar's run has one legal token at each position: both ends know it without a step.
        chain += forced_run(drafter, config.tracer, prefix + chain)[: room - len(chain)] or (
            draft_token(drafter, prefix + chain, config),
        )
        if chain[-1] in config.params.stop_ids:
            break
    return chain


def send_chain(verifier: Verifier, config: EdgeConfig, base: int, node: int, chain: Tokens) -> None:
    """Submit `chain` as nodes `node`, `node + 1`, … below the committed prefix of length `base`."""
    parents = chain_parents(node, len(chain))
    verifier.submit(DraftMessage(config.answer, config.epoch, base, node, chain, parents))


def wait_commit(verifier: Verifier, config: EdgeConfig) -> Commit:
    """Wait for the next commit; early verdicts on the way are not this caller's business."""
    while True:
        event = verifier.wait(config.timeout_s)
        if isinstance(event, Commit):
            return event
