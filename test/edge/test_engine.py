"""The engine over a table that speaks the action language letter by letter."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vlm_spec_decode.actions.types import Done, Forward, Turn
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ActionParseError, Cancelled, InstructionError
from vlm_spec_decode.core.ports import ExitHook, ModelCard, ModelContext
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.tree import positions_of
from vlm_spec_decode.edge.engine import AnswerUpdate, Engine, EngineConfig
from vlm_spec_decode.edge.mission_loop import MAX_OBSTRUCTIONS, OBSTRUCTED, MissionLoop
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.strategies.registry import STRATEGIES

OBSERVATION = Observation(None, "go to the red chair")
ANSWER = "i see the red chair . turn ( -10 ) forward ( 1.6 ) done ( )"
ALPHABET = "\0" + "".join(sorted(set("abcdefghijklmnopqrstuvwxyz0123456789-.() _")))


class Codec:
    def encode(self, text: str) -> Tokens:
        return tuple(ALPHABET.index(c) for c in text)

    def decode(self, tokens: Tokens) -> str:
        return "".join(ALPHABET[t] for t in tokens if t)


class Script(ModelContext):
    """A model that always goes on with one text; `wrong_at` makes it err every so many letters."""

    def __init__(self, text: str, clock: VirtualClock, step_s: float, wrong_at: int = 0) -> None:
        self.text, self.clock, self.step_s, self.wrong_at = text + "\0", clock, step_s, wrong_at
        self.card = ModelCard("script", "1", "t", "p", len(ALPHABET), 1)
        self.closed, self.step_bytes = 0, 0

    def open(self, observation: Observation) -> Script:
        return self

    def prefill(self) -> None: ...

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        self.clock.sleep(self.step_s)
        depths = positions_of(parents, len(prefix))
        logits = np.zeros((len(depths), len(ALPHABET)), dtype=np.float32)
        for row, depth in enumerate(depths):
            shift = 1 if self.wrong_at and depth % self.wrong_at == self.wrong_at - 1 else 0
            letter = ALPHABET.index(self.text[min(depth, len(self.text) - 1)])
            logits[row, (letter + shift) % len(ALPHABET)] = 1.0
        return logits

    def forced(self, prefix: Tokens) -> Tokens:
        return ()

    def close(self) -> None:
        self.closed += 1


def engine(text: str, strategy: str = "speculative", wrong_at: int = 7) -> tuple[Engine, Script, Script]:
    clock = VirtualClock()
    target, draft = Script(text, clock, 0.1), Script(text, clock, 0.01, wrong_at)
    params = SamplingParams(max_tokens=200, stop_ids=(0,))
    config = EngineConfig(strategy=strategy, params=params, draft_length=4)
    return Engine(draft, Codec(), LocalVerifier(target, clock, draft), clock, config), target, draft


def answer(text: str, **options: object) -> list[AnswerUpdate]:
    return list(engine(text, **options)[0].answer(OBSERVATION))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_and_does_the_same(name: str) -> None:
    updates = answer(ANSWER, strategy=name)
    result = updates[-1].result
    assert result
    assert result.text == updates[-1].text == ANSWER
    actions = [action for update in updates for action in update.actions]
    assert actions == [Turn(-10.0), Forward(1.6), Done()]
    assert all(update.result is None for update in updates[:-1])


def test_actions_come_as_soon_as_their_tokens_are_committed() -> None:
    updates = answer(ANSWER)
    first = next(update for update in updates if update.actions)
    assert first.text.endswith(")") or first.text.count(")") == 1
    assert len(first.text) < len(ANSWER)
    result = updates[-1].result
    assert result
    assert result.time_to_first_token_s < result.time_to_first_action_s < result.total_s  # type: ignore[operator]


def test_figures_add_up() -> None:
    result = answer(ANSWER)[-1].result
    assert result
    tokens = len(ANSWER) + 1
    assert sum(r.committed for r in result.rounds) == tokens
    assert result.accepted + result.target_passes in {tokens, tokens + 1}
    assert 0.5 < result.acceptance_rate < 1
    assert sum(r.verify_s for r in result.rounds) == pytest.approx(0.1 * result.target_passes)
    assert sum(r.draft_s for r in result.rounds) == pytest.approx(0.01 * result.drafted)
    plain = answer(ANSWER, strategy="autoregressive")[-1].result
    assert plain
    assert (plain.target_passes, plain.drafted) == (tokens, 0)
    assert result.total_s < plain.total_s / 2


def test_text_that_looks_like_an_action_and_is_none_is_refused_by_name() -> None:
    with pytest.raises(ActionParseError, match="fly"):
        answer("i will fly ( 3 )")


def test_both_contexts_are_closed_whatever_happens() -> None:
    eng, target, draft = engine("fly ( 3 )")
    with pytest.raises(ActionParseError):
        list(eng.answer(OBSERVATION))
    assert target.closed
    assert draft.closed


def test_cancel_from_another_thread_ends_the_answer() -> None:
    eng, target, _ = engine(ANSWER)
    updates = eng.answer(OBSERVATION)
    next(updates)
    thread = threading.Thread(target=eng.cancel)
    thread.start()
    thread.join()
    with pytest.raises(Cancelled):
        list(updates)
    assert target.closed


class SlowToCancel(LocalVerifier):
    """Its `cancel` is held up before it does anything, as by a thread that gets no processor."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.is_called, self.may_go_on = threading.Event(), threading.Event()

    def cancel(self) -> None:
        self.is_called.set()
        assert self.may_go_on.wait(5)
        super().cancel()


def test_a_cancel_that_comes_late_does_not_hit_the_next_answer() -> None:
    clock = VirtualClock()
    verifier = SlowToCancel(Script(ANSWER, clock, 0.1), clock)
    config = EngineConfig(strategy="autoregressive", params=SamplingParams(max_tokens=200, stop_ids=(0,)))
    eng = Engine(None, Codec(), verifier, clock, config)
    said: list[AnswerUpdate] = []
    first = eng.answer(OBSERVATION)
    next(first)
    cancelling = threading.Thread(target=first.cancel)
    cancelling.start()
    assert verifier.is_called.wait(5)

    is_open = threading.Event()

    def ask_again() -> None:
        first.close()
        second = eng.answer(OBSERVATION)
        said.append(next(second))
        is_open.set()
        cancelling.join()
        said.extend(second)

    asking = threading.Thread(target=ask_again)
    asking.start()
    is_open.wait(0.2)
    verifier.may_go_on.set()
    asking.join()
    assert said[-1].result is not None


def test_a_mission_ends_when_the_plan_says_so_or_when_it_goes_nowhere() -> None:
    mission = MissionLoop(" go to the red chair ", max_steps=3)
    assert mission.instruction == "go to the red chair"
    mission.record(["turn(-10)", "forward(1.6)"], [Turn(-10), Forward(1.6)])
    assert mission.observation(None, 1.0).history == ("turn(-10)", "forward(1.6)")
    assert mission.is_running
    mission.record(["done()"], [Done()])
    assert mission.status == "done"
    empty = MissionLoop("what do you see")
    empty.record([], [])
    assert empty.status == "done"
    blocked = MissionLoop("go")
    blocked.record_obstruction(["turn(10)"])
    assert blocked.is_running
    blocked.record(["turn(60)"], [Turn(60)])
    for _ in range(MAX_OBSTRUCTIONS):
        assert blocked.is_running
        blocked.record_obstruction([])
    assert blocked.status == "refused"
    assert [entry for entry in blocked.history if entry != OBSTRUCTED] == ["turn(10)", "turn(60)"]
    assert blocked.history[:2] == ["turn(10)", OBSTRUCTED], "whoever looks again is told"
    long = MissionLoop("go", max_steps=2)
    long.record(["turn(60)"], [Turn(60)])
    long.record(["turn(60)"], [Turn(60)])
    assert long.status == "step_limit"
    long.end("cancelled")
    assert long.status == "step_limit"


@pytest.mark.parametrize("text", ["", "   \n", "go " * 5000])
def test_an_instruction_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(InstructionError):
        MissionLoop(text)
