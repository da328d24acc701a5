"""What the draft says of the first action is shown before it is committed, and changes no answer."""

from __future__ import annotations

import random

import pytest

from test.edge.test_engine import ANSWER, OBSERVATION, Codec, Script, answer, engine
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Turn
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.edge.engine import AnswerUpdate, Engine, EngineConfig, FirstDrafted
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.strategies.registry import STRATEGIES


class Remote(LocalVerifier):
    """A target whose passes take the clock's time, as if it were on another machine."""

    @property
    def shares_processor(self) -> bool:
        return False


def remote_engine(text: str, drafted: str, *, max_tokens: int = 200) -> Engine:
    """Return an engine whose draft says `drafted` where its target says `text`; `hybrid` drafts ahead."""
    clock = VirtualClock()
    target, draft = Script(text, clock, 0.6), Script(drafted, clock, 0.01)
    params = SamplingParams(max_tokens=max_tokens, stop_ids=(0,))
    config = EngineConfig(strategy="hybrid", params=params, draft_length=4)
    return Engine(draft, Codec(), Remote(target, clock), clock, config, draft_step_s=0.01)


def split(updates: list[AnswerUpdate]) -> tuple[list[AnswerUpdate], list[AnswerUpdate]]:
    """Return the updates that show a draft, and the others."""
    shown = [update for update in updates if update.drafted is not None]
    return shown, [update for update in updates if update.drafted is None]


def test_the_first_action_is_shown_before_any_token_of_it_is_committed() -> None:
    shown, others = split(list(remote_engine(ANSWER, ANSWER).answer(OBSERVATION, preview=True)))
    first = shown[0]
    assert first.drafted is not None
    assert first.drafted.action == Turn(-10.0)
    assert first.drafted.text == "i see the red chair . turn ( -10 )"
    assert (first.tokens, first.actions, first.result) == ((), (), None)
    assert len(first.text) < ANSWER.index("turn")
    assert 0.0 < first.drafted.chance <= 1.0
    assert others[-1].text == ANSWER


def test_without_being_asked_nothing_is_shown() -> None:
    shown, others = split(list(remote_engine(ANSWER, ANSWER).answer(OBSERVATION)))
    assert not shown
    assert others[-1].text == ANSWER


def test_nothing_is_shown_once_an_action_is_committed() -> None:
    updates = list(remote_engine(ANSWER, ANSWER).answer(OBSERVATION, preview=True))
    acted = next(i for i, update in enumerate(updates) if update.actions)
    assert not split(updates[acted:])[0]


def test_the_draft_grows_surer_as_its_words_are_committed() -> None:
    shown, _ = split(list(remote_engine(ANSWER, ANSWER).answer(OBSERVATION, preview=True)))
    chances = [update.drafted.chance for update in shown if update.drafted]
    assert len(chances) > 1
    assert chances[-1] > chances[0]


def test_a_draft_that_errs_is_shown_as_it_is_and_the_actions_are_the_targets() -> None:
    wrong = ANSWER.replace("-10", "40")
    shown, others = split(list(remote_engine(ANSWER, wrong).answer(OBSERVATION, preview=True)))
    assert shown[0].drafted is not None
    assert shown[0].drafted.action == Turn(40.0)
    assert [action for update in others for action in update.actions] == list(parse_answer(ANSWER))


@pytest.mark.parametrize("drafted", ["no action at all", "turn ( 1", ") ("])
def test_a_draft_that_says_no_action_shows_none(drafted: str) -> None:
    shown, others = split(list(remote_engine(ANSWER, drafted).answer(OBSERVATION, preview=True)))
    assert not [u for u in shown if u.drafted and u.drafted.action not in parse_answer(ANSWER)]
    assert others[-1].text == ANSWER


@pytest.mark.parametrize("seed", range(30))
def test_a_preview_changes_no_token_no_action_and_no_end(seed: int) -> None:
    """Law: whatever the draft says, the committed updates of an answer are those without a preview."""
    rng = random.Random(seed)
    calls = [f"turn ( {rng.randint(-90, 90)} )", f"forward ( 1.{rng.randint(1, 9)} )", "done ( )"]
    text = "i see a box . " + " ".join(calls[rng.randint(0, 2) :])
    letters = list(text)
    for _ in range(rng.randint(0, 5)):
        letters[rng.randrange(len(letters))] = rng.choice("abc .0123")
    said = []
    for preview in (False, True):
        updates = list(remote_engine(text, "".join(letters)).answer(OBSERVATION, preview=preview))
        shown, others = split(updates)
        assert not any(update.tokens or update.actions or update.result for update in shown)
        result = others[-1].result
        assert result is not None
        tokens = tuple(token for update in others for token in update.tokens)
        said.append((result.tokens, result.text, tokens, [a for update in others for a in update.actions]))
    assert said[0] == said[1]
    assert said[0][1] == text
    assert said[0][3] == list(parse_answer(text))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_may_be_asked_for_a_preview_and_says_the_same(name: str) -> None:
    eng, _, _ = engine(ANSWER, name)
    _, others = split(list(eng.answer(OBSERVATION, preview=True)))
    plain = answer(ANSWER, strategy=name)
    assert others[-1].text == plain[-1].text
    assert [u.actions for u in others if u.actions] == [u.actions for u in plain if u.actions]


def test_an_answer_that_ends_at_its_most_tokens_ends_with_a_preview_too() -> None:
    updates = list(remote_engine(ANSWER, ANSWER, max_tokens=12).answer(OBSERVATION, preview=True))
    assert updates[-1].result is not None
    assert len(updates[-1].result.tokens) == 12


def test_the_same_path_with_the_same_chance_is_no_news() -> None:
    first = FirstDrafted(Codec())
    tokens = Codec().encode("turn ( 5 )")
    assert first.preview.offer((), tokens, 0.5)
    assert first.take() is not None
    assert first.take() is None
    assert not first.preview.offer(tokens[:2], tokens[2:], 0.51)
    assert first.preview.offer(tokens[:2], tokens[2:], 0.8)
    assert not first.preview.is_wanted
    first.preview.is_closed = True
    assert not first.preview.offer((), Codec().encode("turn ( 6 )"), 0.9)


def test_text_that_looks_like_an_action_and_is_none_shows_nothing_and_is_not_drafted_on() -> None:
    first = FirstDrafted(Codec())
    assert not first.preview.offer((), Codec().encode("i will fly ( 3 )"), 0.9)
    assert first.take() is None
    assert not first.preview.is_wanted
