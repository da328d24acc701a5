"""Seeded bugs: each must make a test of this suite fail, or the suite proves less than it says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from test.decoding import test_tree
from test.protocol import test_hostile_link as hostile
from test.strategies import test_exact as exact
from vlm_spec_decode.cloud.requests import ServerRequest
from vlm_spec_decode.core.errors import CloudTimeout
from vlm_spec_decode.core.types import Commit, SamplingParams
from vlm_spec_decode.decoding import sampling, session, verify
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.decoding.tree import SpeculationTree

Patch = Callable[[pytest.MonkeyPatch], None]


def dead_drafts_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SpeculationTree, "_kill", lambda self, number: None)


def late_drafts_always_buried(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SpeculationTree, "_confirm_or_bury", lambda self, n, *_: bool(self._dead.add(n)))


def late_drafts_always_confirmed(patch: pytest.MonkeyPatch) -> None:
    def confirm(self: SpeculationTree, number: int, position: int, token: int) -> bool:
        self._anchors[number] = position
        return False

    patch.setattr(SpeculationTree, "_confirm_or_bury", confirm)


def stale_epoch_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "receive", lambda self, draft: self.tree.add(draft))


def any_child_accepted(patch: pytest.MonkeyPatch) -> None:
    def careless(logits: Any, tokens: Any, parents: Any, start: int, params: Any) -> verify.Verdict:
        verdict = verify.verify_coupled(logits, (), (), start, params)
        if not tokens or verdict.finished:
            return verdict
        return verify.Verdict((tokens[0], *verdict.tokens)[: params.max_tokens - start], 1, start + 2 >= 12)

    patch.setattr(session, "verify_coupled", careless)


def noise_by_call_order(patch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    patch.setattr(sampling, "gumbel_noise", lambda seed, position, size: rng.gumbel(size=size))


def commit_not_idempotent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sequence, "peek", lambda self, commit: () if self.finished else commit.tokens)


def gap_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sequence, "is_gap", lambda self, commit: False)
    patch.setattr(Sequence, "peek", lambda self, c: c.tokens if c.start >= len(self) else ())


def max_tokens_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session, "verify_coupled", _without_limit)


def image_name_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ServerRequest, "digest_of_received", lambda self: self.message.image_digest)


def _without_limit(logits: Any, tokens: Any, parents: Any, start: int, params: Any) -> verify.Verdict:
    from dataclasses import replace

    return verify.verify_coupled(logits, tokens, parents, start, replace(params, max_tokens=4000))


def lost_and_found() -> None:
    """Every third message down is lost; the cloud restarts once."""
    for seed in range(6):
        pair = hostile.Pair(512, seed)
        expected = hostile.own_answer(pair.params)
        count = itertools.count(1)
        for turn in range(150):
            while pair.up:
                pair.deliver(True, pair.up.popleft())
            pair.work()
            while pair.down:
                data = pair.down.popleft()
                if next(count) % 3:
                    pair.deliver(False, data)
                if turn % 5 == 0:
                    pair.deliver(False, data)
            assert pair.sequence.tokens == expected[: len(pair.sequence)]
            if turn == 8:
                pair.clouds[pair.edge.cloud_index] = pair.new_cloud()
            pair.pass_time(0.3)
        assert pair.sequence.tokens == expected


def survivors() -> None:
    test_tree.test_a_commit_keeps_the_confirmed_subtree_and_buries_its_siblings()
    test_tree.test_a_draft_that_comes_after_its_commit_is_re_rooted_by_what_it_says()
    tree = SpeculationTree()
    tree.advance((5, 6))
    assert tree.add(test_tree.draft(1, (9, 6, 7), (0, 1, 2))) == (), "a dead node's children are dead"


def gaps_wait() -> None:
    sequence = Sequence()
    later = Commit(1, 0, 2, (7,), 0, 2, False)
    assert sequence.is_gap(later)
    assert sequence.commit(later) == ()
    assert sequence.commit(Commit(1, 0, 0, (5, 6), 0, 1, False)) == (5, 6)
    assert sequence.commit(later) == (7,)


def answers_end() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=7, seed=3)
    for draft in exact.TABLES.values():
        assert exact.decode("speculative", draft, params, 3)[0] == exact.own_answer(exact.TARGET, params)


CAUGHT_BY: dict[Patch, Callable[[], None]] = {
    dead_drafts_kept: survivors,
    late_drafts_always_buried: survivors,
    late_drafts_always_confirmed: survivors,
    stale_epoch_accepted: exact.test_drafts_of_another_epoch_or_answer_are_not_heard,
    any_child_accepted: exact.test_a_poor_draft_costs_passes_and_never_truth,
    noise_by_call_order: exact.test_a_poor_draft_costs_passes_and_never_truth,
    max_tokens_ignored: answers_end,
    commit_not_idempotent: lost_and_found,
    gap_ignored: gaps_wait,
    image_name_trusted: hostile.test_an_image_that_is_not_the_one_named_is_refused,
}


@pytest.mark.parametrize("check", list(dict.fromkeys(CAUGHT_BY.values())), ids=lambda c: c.__name__)
def test_without_a_bug_the_checks_pass(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("bug", CAUGHT_BY, ids=lambda b: b.__name__)
def test_a_seeded_bug_is_caught(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, LookupError, ValueError, CloudTimeout)):
        CAUGHT_BY[bug]()
