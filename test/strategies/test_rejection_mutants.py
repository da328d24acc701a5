"""Bugs seeded into the rejection rule: the tests of its law must catch each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from test.strategies import test_rejection_law as laws
from test.strategies.random_paths import law_of
from vlm_spec_decode.core.types import DraftMessage
from vlm_spec_decode.decoding import session
from vlm_spec_decode.decoding import verify as rejection
from vlm_spec_decode.decoding.counter_rng import KeyedCounterRng
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.decoding.verify import RejectionRule
from vlm_spec_decode.strategies import pipelined
from vlm_spec_decode.strategies import rejection as proposals
from vlm_spec_decode.strategies.hybrid.draft_tree import DraftTree
from vlm_spec_decode.strategies.rejection import ProposalLog, ResidualCorrector

Patch = Callable[[pytest.MonkeyPatch], None]
ORIGINAL_SETTLE = RejectionRule._settle
ORIGINAL_DRAW = ProposalLog.draw
ORIGINAL_SUBMIT = ResidualCorrector.submit


def accept_ignores_q(patch: pytest.MonkeyPatch) -> None:
    class Careless(KeyedCounterRng):
        def happens(self, part: int, whole: int, role: Any, prefix: Any, attempt: int = 0) -> bool:
            whole = whole if role != "accept" else 1 << 56
            return KeyedCounterRng.happens(self, part, whole, role, prefix, attempt)

    def settle(self: Any, p: Any, *rest: Any) -> Any:
        self.chance = Careless(self.params.seed)
        return ORIGINAL_SETTLE(self, p, *rest)

    patch.setattr(RejectionRule, "_settle", settle)


def correction_drawn_from_p(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rejection, "residual", lambda p, q: p)
    original = proposals.draw_correction
    patch.setattr(proposals, "draw_correction", lambda target, q, *rest: original(target, (), *rest))


def siblings_not_removed_from_p(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rejection, "residual", lambda p, q: p)


def bonus_mid_pipeline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipelined.Cloud, "is_pipeline", False)


def dead_drafts_kept(patch: pytest.MonkeyPatch) -> None:
    original = SpeculationTree.advance

    def advance(self: SpeculationTree, tokens: Any) -> int:
        tokens = tuple(tokens)
        orphans = [n for top in self._top.values() for n in self.nodes[top].children.values()]
        held = {n: self.nodes[n] for n in orphans}
        deepest = original(self, tokens)
        for number, node in held.items():
            if tokens and number not in self.nodes and number not in self._anchors and not self._top:
                node.parent = 0
                self.nodes[number] = node
                self._top[node.token] = number
        return deepest

    patch.setattr(SpeculationTree, "advance", advance)


def unlikely_draws_dropped(patch: pytest.MonkeyPatch) -> None:
    def submit(self: ResidualCorrector, hint: Any) -> None:
        if isinstance(hint, DraftMessage) and len(hint.tokens) > 1:
            prefix = self.tokens[: hint.base]
            keep = 1
            while keep < len(hint.tokens):
                q = self.proposals.q((*prefix, *hint.tokens[:keep]), hint.tokens[keep])
                if q[0][1] < 1 << 14:
                    break
                keep += 1
            hint = DraftMessage(hint.answer, hint.epoch, hint.base, hint.first_node, hint.tokens[:keep],
                         hint.parents[:keep])  # fmt: skip
        ORIGINAL_SUBMIT(self, hint)

    patch.setattr(ResidualCorrector, "submit", submit)


def redraw_after_a_drop(patch: pytest.MonkeyPatch) -> None:
    """Draws anew whenever a prefix is drafted again."""
    turns = itertools.count()

    def draw(self: ProposalLog, prefix: Any, scores: Any, row: int = 0) -> int:
        self._drawn.pop(prefix, None)
        original = self.chance.draw
        turn = next(turns)
        q = proposals.as_choices(scores).distribution(row, self.params, proposals.Q_UNIT)
        token = original(proposals.Remainder(q), "draft", prefix, turn)
        self._drawn[prefix] = (token, q)
        return token

    patch.setattr(ProposalLog, "draw", draw)


def stale_epoch_accepted(patch: pytest.MonkeyPatch) -> None:
    original = Session.receive

    def receive(self: Session, hint: Any, now_s: float = 0.0) -> Any:
        from dataclasses import replace

        return original(self, replace(hint, epoch=self.request.epoch), now_s)

    patch.setattr(session.Session, "receive", receive)


def correction_taken_twice(patch: pytest.MonkeyPatch) -> None:
    def correct(self: Session, correction: Any) -> None:
        commit = self._commit_of(len(self.sequence), (correction.token,), 0, 0, False, 0.0)
        self.tree.advance(self.sequence.commit(commit))

    patch.setattr(Session, "_correct", correct)


def law(residual: str, draft: str = "poor") -> Callable[[pytest.MonkeyPatch], None]:
    def check(patch: pytest.MonkeyPatch) -> None:
        params = laws.params_of(residual)
        table = laws.TABLES[draft]
        found = law_of(patch, lambda: laws.decode("speculative", table, params, 2, ()))
        assert found == laws.target_law(params)

    check.__name__ = f"law_{residual}"
    return check


def same_answers(patch: pytest.MonkeyPatch) -> None:
    laws.same_answer_whatever_the_schedule()


def one_draw_per_prefix(patch: pytest.MonkeyPatch) -> None:
    drawing = ProposalLog(laws.params_of())
    logits = np.zeros(3, np.float32)
    for prefix in itertools.product(range(3), repeat=3):
        assert drawing.draw(prefix, logits) == drawing.draw(prefix, logits)


def epochs(patch: pytest.MonkeyPatch) -> None:
    laws.test_a_session_takes_a_correction_once_and_only_of_its_epoch()


def likely_draws_only(patch: pytest.MonkeyPatch) -> None:
    """A draw is sent if it is the likeliest token."""
    original = DraftTree._draw

    def draws(self: DraftTree, place: Any, token: int) -> None:
        best = max(place.children.values(), key=lambda c: c.log_prob).token
        original(self, place, token)
        place.children[token].is_drawn = token == best

    patch.setattr(DraftTree, "_draw", draws)


def exits_throw_the_dice(patch: pytest.MonkeyPatch) -> None:
    def guess(self: RejectionRule, nodes: Any, logits: Any, prefix: Any, own_q: Any) -> Any:
        return self.verify(nodes, logits, prefix, True, own_q)

    patch.setattr(RejectionRule, "guess", guess)


def own_drafts_always_accepted(patch: pytest.MonkeyPatch) -> None:
    """To call them certain instead would cost acceptance and no truth."""
    patch.setattr(ProposalLog, "along", lambda self, prefix, chain: tuple(((t, 1),) for t in chain))


def law_of_strategy(name: str, schedule: tuple[int, ...] = ()) -> Callable[[pytest.MonkeyPatch], None]:
    def check(patch: pytest.MonkeyPatch) -> None:
        params, table = laws.params_of(), laws.TABLES["poor"]
        found = law_of(patch, lambda: laws.decode(name, table, params, 2, schedule))
        assert found == laws.target_law(params)

    check.__name__ = f"law_of_{name}"
    return check


HYBRID, COLOCATED = law_of_strategy("hybrid"), law_of_strategy("colocated")
SPARSE, CLOUD = law("sparse"), law("cloud")

CAUGHT_BY: dict[Patch, Callable[[pytest.MonkeyPatch], None]] = {
    accept_ignores_q: SPARSE,
    correction_drawn_from_p: SPARSE,
    siblings_not_removed_from_p: laws.siblings_law,
    bonus_mid_pipeline: same_answers,
    dead_drafts_kept: same_answers,
    unlikely_draws_dropped: SPARSE,
    likely_draws_only: HYBRID,
    exits_throw_the_dice: HYBRID,
    own_drafts_always_accepted: COLOCATED,
    redraw_after_a_drop: one_draw_per_prefix,
    stale_epoch_accepted: epochs,
    correction_taken_twice: epochs,
}


@pytest.mark.parametrize("check", list(dict.fromkeys([*CAUGHT_BY.values(), CLOUD])), ids=lambda c: c.__name__)
def test_without_a_bug_the_checks_pass(
    check: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch)


@pytest.mark.parametrize("bug", CAUGHT_BY, ids=lambda b: b.__name__)
def test_a_seeded_bug_is_caught(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, LookupError, ValueError)):
        CAUGHT_BY[bug](monkeypatch)
