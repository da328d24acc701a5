"""Masked decoding is exact with respect to the masked target, and what is forced costs nothing."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from test.tables import STOP, TABLES, TARGET, Table, TableModel
from test.toy_grammar import ToyGrammar, is_forced, legal
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.requests import BatchResult, JobResult
from vlm_spec_decode.core.choices import LegalTokens, Logits
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import GrammarError
from vlm_spec_decode.core.ports import GrammarState, Mask
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding import sampling
from vlm_spec_decode.decoding.grammar_mask import GrammarWalk, MaskedContext, MaskedModel
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import Hello, Refused
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy

OBSERVATION = Observation(None, "go")
LENGTH = 8
SEEDS = [SamplingParams(temperature=1.0, max_tokens=LENGTH, stop_ids=(STOP,), seed=s) for s in range(60)]
GREEDY = SamplingParams(max_tokens=LENGTH, stop_ids=(STOP,))


def own_answer(table: Table, params: SamplingParams) -> Tokens:
    """Say what the masked target says alone: mask and pick, one token after the other, no shortcut."""
    context = TableModel(table).open(OBSERVATION)
    said: Tokens = ()
    while len(said) < params.max_tokens and STOP not in said:
        logits = context.score(said)[0]
        logits[[t for t in range(3) if t not in legal(said)]] = -np.inf
        said += (sampling.pick(logits, len(said), params),)
    return said


def decode(
    name: str, draft: Table, params: SamplingParams, draft_length: int = 3
) -> tuple[Tokens, list[Commit], TableModel, TableModel]:
    target, drafter = TableModel(TARGET), TableModel(draft)
    helper = MaskedModel(TableModel(draft), ToyGrammar())
    verifier = LocalVerifier(MaskedModel(target, ToyGrammar()), VirtualClock(), helper)
    verifier.open(AnswerRequest(1, OBSERVATION, params, name))
    commits: list[Commit] = []
    original = verifier.wait
    verifier.wait = lambda timeout: commits.append(original(timeout)) or commits[-1]  # type: ignore
    sequence = Sequence()
    context = MaskedModel(drafter, ToyGrammar()).open(OBSERVATION)
    list(
        strategy(name).edge(
            sequence,
            context,
            verifier,
            VirtualClock(),
            EdgeConfig(answer=1, params=params, draft_length=draft_length),
        )
    )
    return sequence.tokens, commits, target, drafter


@pytest.mark.parametrize("draft_length", [1, 3, 6])
@pytest.mark.parametrize("draft", TABLES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_what_the_masked_target_says(name: str, draft: str, draft_length: int) -> None:
    for params in [*SEEDS, GREEDY]:
        said, *_ = decode(name, TABLES[draft], params, draft_length)
        assert said == own_answer(TARGET, params)
        assert all(token in legal(said[:i]) for i, token in enumerate(said))


def test_autoregressive_runs_no_pass_for_a_forced_token() -> None:
    saved = 0
    for params in SEEDS:
        said, commits, target, _ = decode("autoregressive", TARGET, params)
        free = sum(not is_forced(said[:i]) for i in range(len(said)))
        assert len(commits) == target.contexts[0].calls == free
        saved += len(said) - free
    assert saved > len(SEEDS) / 3, "the sample has forced tokens"


def test_the_draft_takes_no_step_for_a_forced_token() -> None:
    steps = forced = 0
    for params in SEEDS:
        scored: list[Tokens] = []
        drafter = TableModel(TABLES["poor"])
        inner = drafter.open(OBSERVATION)
        score = inner.score
        inner.score = lambda prefix, *rest, **more: (  # type: ignore[method-assign]
            scored.append(prefix),  # noqa: B023
            score(prefix, *rest, **more),  # noqa: B023
        )[1]
        verifier = LocalVerifier(MaskedModel(TableModel(TARGET), ToyGrammar()), VirtualClock())
        verifier.open(AnswerRequest(1, OBSERVATION, params, "speculative"))
        sequence = Sequence()
        context = MaskedModel(inner_model(inner), ToyGrammar()).open(OBSERVATION)
        edge = strategy("speculative").edge
        list(
            edge(
                sequence,
                context,
                verifier,
                VirtualClock(),
                EdgeConfig(answer=1, params=params, draft_length=4),
            )
        )
        assert not [prefix for prefix in scored if is_forced(prefix)]
        steps += len(scored)
        forced += sum(is_forced(sequence.tokens[:i]) for i in range(len(sequence)))
    assert steps
    assert forced


def inner_model(context):  # type: ignore[no-untyped-def]
    model = TableModel(TARGET)
    model.open = lambda observation: context  # type: ignore[method-assign]
    return model


def full_tree(depth: int) -> tuple[Tokens, Tokens, list[Tokens]]:
    """Every token below every node, illegal ones too: tokens, parents and the paths of all rows."""
    tokens, parents, paths = [], [], [()]
    row = 0
    while len(paths[row]) < depth:
        for token in range(3):
            tokens.append(token)
            parents.append(row)
            paths.append((*paths[row], token))
        row += 1
    return tuple(tokens), tuple(parents), paths


@pytest.mark.parametrize("prefix", [(), (0,), (1,), (1, 0), (0, 0, 1)])
def test_the_state_forks_with_every_node_of_a_tree(prefix: Tokens) -> None:
    tokens, parents, paths = full_tree(4)
    plain = TableModel(TARGET).open(OBSERVATION).score(prefix, tokens, parents)
    masked = MaskedModel(TableModel(TARGET), ToyGrammar()).open(OBSERVATION).score(prefix, tokens, parents)
    reached = 0
    for row, path in enumerate(paths):
        whole = prefix + path
        if STOP in whole or any(t not in legal(whole[:i]) for i, t in enumerate(whole)):
            continue
        reached += 1
        for token in range(3):
            wanted = plain[row, token] if token in legal(whole) else -np.inf
            assert masked[row, token] == wanted
    assert reached > 5


def test_no_state_is_walked_twice() -> None:
    grammar = ToyGrammar()
    context = MaskedModel(TableModel(TARGET), grammar).open(OBSERVATION)
    tokens, parents, _ = full_tree(3)
    for prefix in ((), (0,), (0, 1), (0, 1, 0), (0,), ()):
        context.score(prefix, tokens, parents)
        context.forced(prefix)
    assert set(grammar.steps.values()) == {1}
    assert set(grammar.masks.values()) == {1}


REAL_SIZE = 151_936


@dataclass(frozen=True)
class WideState(GrammarState):
    """A state of a real vocabulary, with one of two masks: nearly all is legal, or a third."""

    depth: int = 0

    def mask(self) -> Mask:
        """Return the legal tokens."""
        return np.arange(REAL_SIZE) % 3 == 0 if self.depth % 2 else np.arange(REAL_SIZE) > 5

    def after(self, token: int) -> WideState:
        """Go on."""
        return WideState(self.depth + 1)


@dataclass(frozen=True)
class WideGrammar:
    """A grammar with such states."""

    digest: str = "wide"

    def start(self) -> WideState:
        """Return the first of them."""
        return WideState()


def test_the_places_of_many_branches_hold_no_row_each() -> None:
    """What `multi_branch` visits in one answer: thousands of places, each asked for what is forced there."""
    walk = GrammarWalk(WideGrammar())
    paths = [(6 * branch + 6, 3 * branch, 6) for branch in range(300)]
    tracemalloc.start()
    try:
        for path in paths:
            assert walk.forced(path) == ()
            assert walk.below(path, (), ())[0] is not None
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # A mask for each of the 900 places were 17 MB of bits, and 10^9 bytes of ids.
    assert held < 2e6
    assert walk.at(paths[0]).legal() is walk.at(paths[7]).legal()


def test_legal_tokens_keep_nothing_wider_than_their_bits() -> None:
    legal_tokens = LegalTokens.of(np.arange(REAL_SIZE) > 5)
    tracemalloc.start()
    try:
        assert legal_tokens.count == len(legal_tokens.ids) == int(legal_tokens.mask.sum()) == REAL_SIZE - 6
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < REAL_SIZE / 8


def test_early_exits_are_masked_like_the_pass() -> None:
    seen: list[tuple[int, Logits]] = []
    context = MaskedModel(TableModel(TARGET, num_exits=2), ToyGrammar()).open(OBSERVATION)
    final = context.score((0,), (0, 1), (0, 1), on_exit=lambda layer, row: seen.append((layer, row)))
    assert [layer for layer, _ in seen] == [0, 1]
    for _, logits in seen:
        assert (np.isneginf(logits) == np.isneginf(final)).all()


def test_without_a_grammar_a_model_is_as_it_was() -> None:
    model = TableModel(TARGET)
    context = MaskedModel(model, None).open(OBSERVATION)
    assert context is model.contexts[0]
    assert context.forced((0,)) == ()


def test_forced_runs_end_at_a_choice_and_at_the_end() -> None:
    context = MaskedModel(TableModel(TARGET), ToyGrammar()).open(OBSERVATION)
    assert context.forced(()) == ()
    assert context.forced((1,)) == (0,)
    assert context.forced((0, 0)) == (1,)
    assert context.forced((0, STOP)) == ()
    grammar = ToyGrammar(broken={(0, 0, 1): frozenset({0})})
    assert MaskedModel(TableModel(TARGET), grammar).open(OBSERVATION).forced((0, 0)) == (1, STOP)


@pytest.mark.parametrize("name", ["autoregressive", "speculative"])
def test_a_forced_end_finishes_the_answer_and_the_limit_cuts_a_forced_run(name: str) -> None:
    context = MaskedModel(TableModel(TARGET), ToyGrammar(broken={(0, 0, 1): frozenset({0})}))
    for limit, wanted in ((2, (0, 0)), (3, (0, 0, 1)), (9, (0, 0, 1, STOP))):
        params = SamplingParams(max_tokens=limit, stop_ids=(STOP,))
        request = AnswerRequest(1, OBSERVATION, params, name, committed=(0,))
        session = Session(request, context.open(OBSERVATION), strategy(name).cloud())
        session.receive(DraftMessage(1, 0, 1, 1, (0,), (0,)))
        plan = session.plan()
        assert plan
        logits = np.full((1 + len(plan.nodes.tokens), 3), -np.inf, dtype=np.float32)
        logits[0, 0] = 0
        if len(logits) > 1:
            logits[1, 1] = 0
        assert session.complete(plan, logits).finished
        assert session.sequence.tokens == wanted
        assert session.plan() is None


def test_a_broken_mask_is_a_named_error() -> None:
    empty = MaskedModel(TableModel(TARGET), ToyGrammar(broken={(0,): frozenset({0, 1, 2})}))
    with pytest.raises(GrammarError, match="no token legal"):
        empty.open(OBSERVATION).score((0,))
    with pytest.raises(GrammarError, match="no token legal"):
        empty.open(OBSERVATION).forced((0,))
    wide = MaskedModel(TableModel(TARGET), ToyGrammar(vocab_size=4))
    with pytest.raises(GrammarError, match="4 tokens for a model that has 3"):
        wide.open(OBSERVATION).score(())


def test_an_answer_that_does_not_stop_where_the_grammar_ends_is_a_named_error() -> None:
    params = SamplingParams(max_tokens=9, stop_ids=())
    verifier = LocalVerifier(MaskedModel(TableModel(TARGET), ToyGrammar()), VirtualClock())
    verifier.open(AnswerRequest(1, OBSERVATION, params, "autoregressive", committed=(0, STOP)))
    with pytest.raises(GrammarError, match="end token"):
        verifier.wait(1)


@pytest.mark.parametrize("prefix", [(2,), (0, 0, 0), (0, 2, 1), (7,), (-1,)])
def test_a_prefix_that_is_not_of_the_grammar_is_a_named_error(prefix: Tokens) -> None:
    context = MaskedModel(TableModel(TARGET), ToyGrammar()).open(OBSERVATION)
    with pytest.raises(GrammarError, match="not of the grammar"):
        context.score(prefix)
    assert isinstance(context, MaskedContext)


def test_a_grammar_in_trouble_ends_one_answer_by_name_and_not_the_cloud() -> None:
    """The mask after what a pass has said is asked for while the commit is made, outside any pass."""
    protocol = ServerProtocol(TableModel(TARGET).card, "toy")
    protocol.receive(b"robot", codec.encode(Hello("test", "tokens", "prompt", "toy", 3)), 0.0)
    grammar = ToyGrammar(broken={(0,): frozenset({0, 1, 2}), (1,): frozenset({0})})
    target = MaskedModel(TableModel(TARGET), grammar)
    packer = codec.TokenPacker(3)
    request = AnswerRequest(1, OBSERVATION, GREEDY, "autoregressive")
    protocol.receive(b"robot", codec.encode(codec.open_message(request, packer, 0, ())), 0.0)
    protocol.outbox.clear()
    job = protocol.next_open()
    assert job
    protocol.finish(BatchResult((job,), (JobResult(context=target.open(OBSERVATION)),)))
    (job,) = protocol.next_batch()
    assert job.plan
    assert job.request.session
    protocol.finish(BatchResult((job,), (JobResult(scores=job.request.session.run(job.plan)),)))
    refused = codec.decode(protocol.outbox.pop()[1])
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.answer) == ("grammar", 1)
    assert not protocol.next_batch()
