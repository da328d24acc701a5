"""Seeded bugs of masked decoding: each must make a test of `test_masked` fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from test.decoding import test_masked as masked_tests
from vlm_spec_decode.core.errors import GrammarError
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding import grammar_mask as masked
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.decoding.grammar_mask import GrammarWalk, MaskedContext
from vlm_spec_decode.decoding.session import Session

Patch = Callable[[pytest.MonkeyPatch], None]


def one_mask_for_a_whole_tree(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        GrammarWalk,
        "below",
        lambda self, prefix, tokens, parents, rows=None: [self.at(prefix).legal()] * (1 + len(tokens)),
    )


def early_exits_not_masked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        MaskedContext,
        "_masked_hook",
        lambda self, prefix, tokens, parents, on_exit: (
            on_exit and (lambda layer, scores: on_exit(layer, as_choices(scores)))
        ),
    )


def first_of_two_forced(patch: pytest.MonkeyPatch) -> None:
    def forced(self: GrammarWalk, prefix: Tokens) -> Tokens:
        legal = self.at(prefix).legal()
        return () if legal is None or len(legal.ids) > 2 else (int(legal.ids[0]),)

    patch.setattr(GrammarWalk, "forced", forced)


def nothing_forced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GrammarWalk, "forced", lambda self, prefix: ())


def forced_without_limit_or_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Session,
        "_with_forced",
        lambda self, prefix, said, finished: (said + self.context.forced(prefix + said), finished),
    )


def states_not_kept(patch: pytest.MonkeyPatch) -> None:
    child = masked._GrammarNode.child

    def forgetful(self, token):  # type: ignore[no-untyped-def]
        self.children.clear()
        return child(self, token)

    patch.setattr(masked._GrammarNode, "child", forgetful)


def says_the_same() -> None:
    masked_tests.test_every_strategy_says_what_the_masked_target_says("speculative", "poor", 3)


def ends() -> None:
    masked_tests.test_a_forced_end_finishes_the_answer_and_the_limit_cuts_a_forced_run("autoregressive")


CAUGHT_BY: dict[Patch, Callable[[], None]] = {
    one_mask_for_a_whole_tree: says_the_same,
    early_exits_not_masked: masked_tests.test_early_exits_are_masked_like_the_pass,
    first_of_two_forced: says_the_same,
    nothing_forced: masked_tests.test_autoregressive_runs_no_pass_for_a_forced_token,
    forced_without_limit_or_end: ends,
    states_not_kept: masked_tests.test_no_state_is_walked_twice,
}


@pytest.mark.parametrize("bug", CAUGHT_BY, ids=lambda b: b.__name__)
def test_a_seeded_bug_is_caught(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    CAUGHT_BY[bug]()
    bug(monkeypatch)
    with pytest.raises((AssertionError, GrammarError)):
        CAUGHT_BY[bug]()
