"""What was answered before: offered whole with the question, and cheap where it is wrong."""

from __future__ import annotations

import pytest

from vlm_spec_decode.bench.run import RunSetup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import AnswerRequest, Commit, DraftMessage, Image, Observation, SamplingParams
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.edge.answer_cache import AnswerCache
from vlm_spec_decode.edge.request_state import RequestState
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import Open
from vlm_spec_decode.strategies.registry import strategy

GO2 = HardwareProfile("go2", 72, 620, 620, 620, 62)
LINK = LinkProfile("link", 120, 20, 20)
PARAMS = SamplingParams(max_tokens=40)
HERE, THERE = (Image(frame, 4, 4) for frame in (b"here", b"there"))


def asked(image: Image = HERE, history: tuple[str, ...] = ()) -> Observation:
    return Observation(image, "go to the chair", history)


def test_the_surer_the_likeness_the_more_is_offered_and_the_likelier() -> None:
    recall = AnswerCache()
    assert recall.draft(asked(), 1) is None
    recall.add(asked(), tuple(range(60)))
    drafts = [recall.draft(o, 5) for o in (asked(), asked(THERE), asked(THERE, ("turn(10)",)))]
    lengths = [len(d.tokens) for d in drafts if d]
    assert lengths[0] == 60
    assert lengths == sorted(lengths, reverse=True)
    assert [d.weights[0] for d in drafts if d] == sorted(d.weights[0] for d in drafts if d)
    assert recall.draft(Observation(HERE, "something else"), 5) is None


def test_answers_that_depart_at_once_are_soon_offered_no_more_than_a_few_tokens_of() -> None:
    recall = AnswerCache()
    for turn in range(40):
        recall.add(asked(THERE, (f"turn({turn})",)), (turn, *range(50)))
    draft = recall.draft(asked(THERE, ("forward(1)",)), 1)
    assert draft is not None
    assert len(draft.tokens) < 12
    same = recall.draft(asked(THERE, ("turn(39)",)), 1)
    assert same is not None
    assert len(same.tokens) == 51, "what was learned of other histories says nothing of the same one"


@pytest.mark.parametrize("name", ["hybrid", "autoregressive"])
def test_an_answer_that_was_given_before_takes_one_pass_if_the_strategy_recalls(name: str) -> None:
    draft, target = pair(PairSpec(acceptance=0.5))
    first, again = (
        decode(
            RunSetup(strategy=name, hardware=GO2, link=LINK, is_repeat=repeat), draft, target, asked(), PARAMS
        )
        for repeat in (False, True)
    )
    assert again.tokens == first.tokens
    assert (again.passes == 1) == strategy(name).recalls
    if strategy(name).recalls:
        assert again.total_s <= 1.4 * (LINK.rtt_ms + GO2.prefill_ms) / 1000


def test_a_wrong_answer_costs_little_and_is_not_said() -> None:
    """The pair's answers to another seed are other tokens from the first one on."""
    models = [pair(PairSpec(acceptance=0.6, seed=seed)) for seed in (1, 2)]
    fresh = decode(RunSetup(strategy="hybrid", hardware=GO2, link=LINK), *models[1], asked(), PARAMS)
    mixed = _Switching([target for _, target in models], [draft for draft, _ in models])
    wrong = decode(
        RunSetup(strategy="hybrid", hardware=GO2, link=LINK, is_repeat=True),
        mixed.draft,
        mixed.target,
        asked(),
        PARAMS,
    )
    assert wrong.tokens == fresh.tokens
    assert wrong.total_s <= 1.1 * fresh.total_s + 0.3 * GO2.prefill_ms / 1000


class _Switching:
    """Models that are the first of a pair on the first question, and the second on the second."""

    def __init__(self, targets: list, drafts: list) -> None:
        self.target, self.draft = _InTurn(targets), _InTurn(drafts)


class _InTurn:
    def __init__(self, models: list) -> None:
        self.models, self.card = list(models), models[0].card

    def open(self, observation: Observation):  # type: ignore[no-untyped-def]
        return self.models.pop(0).open(observation)


def test_an_open_carries_what_is_recalled_and_what_is_left_of_it_after_a_loss() -> None:
    draft = DraftMessage(1, 0, 0, 1, (5, 6, 7), (0, 1, 2), (1, 1, 1))
    request = AnswerRequest(1, asked(), PARAMS, "hybrid", draft=draft)
    packer = codec.TokenPacker(100)
    answer = RequestState(request=request, packer=packer)
    opened, *more = answer.open_messages()
    assert isinstance(opened, Open)
    assert not more
    assert codec.answer_request(opened, packer, HERE).draft == draft
    answer.commit(Commit(1, 0, 0, (5, 9), 1, 1, False))
    answer.begin_epoch()
    opened, *more = answer.open_messages()
    assert isinstance(opened, Open)
    assert opened.draft is None
    assert not more


def test_a_session_takes_only_the_draft_of_its_own_answer_and_epoch() -> None:
    _, target = pair(PairSpec(acceptance=0.5))
    for number, epoch, known in ((1, 2, 3), (1, 1, 0), (2, 2, 0)):
        draft = DraftMessage(number, epoch, 0, 1, (5, 6, 7), (0, 1, 2))
        request = AnswerRequest(1, asked(), PARAMS, "hybrid", epoch=2, draft=draft)
        session = Session(request, target.open(asked()), strategy("hybrid").cloud())
        assert len(session.tree.nodes) == known
