"""Several answers of one engine at the same time: the tokens of each are those of the answer asked alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from test.net.test_sockets import own_answer
from test.tables import POOR_DRAFT, STOP, TARGET, TableModel
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import Cancelled, CloudTimeout, EngineBusy, OutOfMemory
from vlm_spec_decode.core.ports import Scored
from vlm_spec_decode.core.processes import ProcessClock, Processes, Threads, VirtualProcesses
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    Image,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import ModelPair, virtual_engine
from vlm_spec_decode.edge.open_answers import OpenAnswers, Step
from vlm_spec_decode.edge.shared_draft import DraftArbiter, DraftProgress
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy

PAIR = ModelPair(TableModel(TARGET), TableModel(POOR_DRAFT), SilentCodec(), (STOP,))
HARDWARE = HardwareProfile("slow", draft_ms=20, step_ms=100, verify_ms=100, prefill_ms=150, cloud_draft_ms=10)
LINK = LinkProfile("lan", rtt_ms=10.0, up_mbps=10.0, down_mbps=10.0)
IMAGE = Image(bytes(range(256)) * 20, 640, 360)
SEEDS = (1, 7, 17, 40)


def params(seed: int, temperature: float = 1.0, rule: str = "coupled") -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=24, stop_ids=(STOP,), seed=seed, rule=rule)


def question(number: int) -> Observation:
    return Observation(IMAGE, f"go {number}")


def config(seed: int, name: str = "hybrid", temperature: float = 1.0, rule: str = "coupled") -> EngineConfig:
    return EngineConfig(strategy=name, params=params(seed, temperature, rule), free_text=True)


def virtual() -> tuple[Engine, VirtualVerifier]:
    return virtual_engine(PAIR, LINK, HARDWARE, config(1))


def local() -> Engine:
    clock, draft = WallClock(), TableModel(POOR_DRAFT)
    return Engine(draft, SilentCodec(), LocalVerifier(TableModel(TARGET), clock, draft), clock, config(1))


def alone(seed: int, name: str, temperature: float = 1.0, rule: str = "coupled") -> Tokens:
    *_, last = virtual()[0].answer(question(seed), config(seed, name, temperature, rule))
    assert last.result
    return last.result.tokens


def steps_of(answers: OpenAnswers) -> Iterator[Step]:
    while answers.open and (step := answers.next(answers._engine.clock.now() + 60)):
        yield step


def run(engine: Engine, configs: list[EngineConfig]) -> tuple[list[Tokens], list[Step]]:
    """Ask all at once; return the tokens of each and all steps."""
    with OpenAnswers(engine) as answers:
        asked = [answers.ask(question(each.params.seed), each) for each in configs]
        steps = list(steps_of(answers))
    assert not [step.error for step in steps if step.error]
    tokens = []
    for answer in asked:
        updates = [step.update for step in steps if step.answer is answer and step.update]
        assert updates[-1].result
        assert updates[-1].result.tokens == tuple(itertools.chain(*(update.tokens for update in updates)))
        assert answer.updates == len(updates)
        tokens.append(updates[-1].result.tokens)
    return tokens, steps


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_of_several_is_the_answer_asked_alone(name: str, temperature: float) -> None:
    configs = [config(seed, name, temperature) for seed in SEEDS]
    expected = [own_answer(each.params) for each in configs]
    assert [alone(seed, name, temperature) for seed in SEEDS] == expected
    for count in (2, 3, 4):
        assert run(virtual()[0], configs[:count])[0] == expected[:count]
    assert run(local(), configs)[0] == expected


@pytest.mark.parametrize("name", [name for name in STRATEGIES if "rejection" in strategy(name).rules])
def test_the_rejection_rule_draws_the_same_for_each_of_several(name: str) -> None:
    """Its draws are keyed by seed and prefix. Which drafts there were decides the rest, so only a strategy
    whose drafts do not depend on time gives the same tokens; the others give a draw of the same law."""
    configs = [config(seed, name, 1.0, "rejection") for seed in SEEDS]
    tokens, _ = run(virtual()[0], configs)
    for said, each in zip(tokens, configs, strict=True):
        assert each.params.ends(len(said), said[-1])
    if name in {"speculative", "autoregressive"}:
        assert tokens == [alone(seed, name, 1.0, "rejection") for seed in SEEDS]


def test_strategies_may_be_mixed() -> None:
    names = ("hybrid", "autoregressive", "pipelined", "speculative")
    configs = [config(seed, name) for seed, name in zip(SEEDS, names, strict=True)]
    assert run(virtual()[0], configs)[0] == [own_answer(each.params) for each in configs]


@pytest.mark.parametrize("name", ["hybrid", "speculative", "autoregressive", "pipelined"])
def test_one_alone_takes_as_long_as_when_it_is_iterated(name: str) -> None:
    engine, verifier = virtual()
    iterated = []
    for update in engine.answer(question(7), config(7, name)):
        iterated.append((engine.clock.now(), update.tokens))
    engine, again = virtual()
    _, steps = run(engine, [config(7, name)])
    assert [step.update.tokens for step in steps if step.update] == [tokens for _, tokens in iterated]
    assert [step.at_s for step in steps] == pytest.approx([at_s for at_s, _ in iterated])
    assert again.gpu_s == pytest.approx(verifier.gpu_s)
    assert again.usage == verifier.usage


@pytest.mark.parametrize("name", ["hybrid", "speculative", "autoregressive"])
def test_several_share_the_gpus_passes(name: str) -> None:
    """Four answers of one length take about as long as one: a pass over four is hardly dearer."""
    lasting = SamplingParams(temperature=1.0, max_tokens=24, seed=3)
    each = EngineConfig(strategy=name, params=lasting, free_text=True)
    engine, verifier = virtual()
    run(engine, [each])
    alone_s, alone_gpu_s = engine.clock.now(), verifier.gpu_s
    engine, verifier = virtual()
    tokens, steps = run(engine, [each] * 4)
    assert tokens == [own_answer(lasting)] * 4
    # One after the other they would take four times as long.
    most = {"autoregressive": 1.25, "hybrid": 2.2, "speculative": 2.6}[name]
    assert verifier.gpu_s < most * alone_gpu_s
    assert engine.clock.now() < most * alone_s
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)


def test_every_run_in_virtual_time_is_the_same() -> None:
    runs = []
    for _ in range(2):
        _, steps = run(virtual()[0], [config(seed) for seed in SEEDS])
        runs.append([(step.at_s, step.update) for step in steps])
    assert runs[0] == runs[1]


def test_time_passes_only_in_next_and_not_beyond_what_is_said() -> None:
    engine, _ = virtual()
    with OpenAnswers(engine) as answers:
        first = answers.ask(question(1), config(1))
        assert engine.clock.now() == 0.0
        times, steps = [0.05, 0.10, 0.17], list[Step]()
        for time_s in times:
            assert answers.next(time_s) is None, "the prompt's pass takes 150 ms"
            assert engine.clock.now() == time_s
        second = answers.ask(question(7), config(7))
        assert second.asked_s == times[-1]
        while answers.open:
            time_s = engine.clock.now() + 0.02
            while step := answers.next(time_s):
                assert step.at_s == engine.clock.now() <= time_s
                steps.append(step)
            assert engine.clock.now() == pytest.approx(time_s)
        assert {step.answer for step in steps} == {first, second}
        assert answers.next() is None


def test_the_winner_goes_on_and_the_others_end_here_and_in_the_cloud() -> None:
    engine, verifier = virtual()
    with OpenAnswers(engine) as answers:
        asked = [answers.ask(question(seed), config(seed)) for seed in SEEDS]
        assert not answers.has_room
        with pytest.raises(EngineBusy, match="4 answers are open"):
            answers.ask(question(5), config(5))
        step = answers.next()
        assert step
        now_s = engine.clock.now()
        answers.keep(step.answer)
        assert engine.clock.now() == now_s
        assert answers.open == ((step.answer,) if not step.is_last else ())
        assert answers.has_room
        later = answers.ask(question(5), config(5))
        steps = [step, *steps_of(answers)]
        assert {each.answer for each in steps} == {step.answer, later}
        for answer in (step.answer, later):
            seed = int(answer.observation.instruction.split()[1])
            (result,) = (s.update.result for s in steps if s.answer is answer and s.update and s.is_last)
            assert result
            assert result.tokens == own_answer(params(seed))
    assert len(asked) == 4
    assert not verifier._cloud._answers


def test_an_answer_that_fails_says_why_and_the_others_go_on() -> None:
    engine, _ = virtual()
    # Nothing is drafted by the time that its patience is over: the cloud waits for a draft that never comes.
    hasty = EngineConfig(strategy="speculative", params=params(1), timeout_s=0.01, free_text=True)
    with OpenAnswers(engine) as answers:
        failing = answers.ask(question(1), hasty)
        answers.ask(question(7), config(7))
        steps = list(steps_of(answers))
    (failed,) = [step for step in steps if step.error]
    assert failed.answer is failing
    assert isinstance(failed.error, CloudTimeout)
    assert failed.is_last
    assert steps[-1].update
    assert steps[-1].update.result
    assert steps[-1].update.result.tokens == own_answer(params(7))


@pytest.mark.parametrize("kind", ["virtual", "local"])
def test_a_cancel_of_the_engine_is_told_for_each(kind: str) -> None:
    engine = virtual()[0] if kind == "virtual" else local()
    endless = SamplingParams(max_tokens=1_000_000)
    long = EngineConfig(strategy="autoregressive", params=endless, free_text=True)
    with OpenAnswers(engine) as answers:
        asked = [answers.ask(question(seed), long) for seed in (1, 2)]
        assert answers.next()
        engine.cancel()
        steps = [step for step in steps_of(answers) if step.error]
        assert {step.answer for step in steps} == set(asked)
        assert all(isinstance(step.error, Cancelled) for step in steps)
        assert answers.has_room


def test_leaving_the_block_ends_all_of_them() -> None:
    engine, verifier = virtual()
    with OpenAnswers(engine) as answers:
        for seed in SEEDS:
            answers.ask(question(seed), config(seed))
        answers.next()
    assert not answers.open
    assert not answers._running
    assert not verifier._cloud._answers
    *_, last = engine.answer(question(1), config(1))
    assert last.result
    assert last.result.tokens == own_answer(params(1)), "the engine is free for the next"


def test_iterators_of_one_thread_may_be_advanced_in_any_order() -> None:
    for engine in (virtual()[0], local()):
        iterators = [engine.answer(question(seed), config(seed)) for seed in SEEDS]
        tokens: list[Tokens] = [() for _ in SEEDS]
        for index in itertools.islice(itertools.cycle((0, 2, 1, 3, 3, 0)), 400):
            if update := next(iterators[index], None):
                tokens[index] += update.tokens
        assert tokens == [own_answer(params(seed)) for seed in SEEDS]


def test_one_too_many_is_refused_and_a_cancelled_one_does_not_count() -> None:
    engine, _ = virtual()
    iterators = [engine.answer(question(seed), config(seed)) for seed in SEEDS]
    for iterator in iterators:
        iterator.start()
    with pytest.raises(EngineBusy):
        next(engine.answer(question(5), config(5)))
    iterators[0].cancel()
    *_, last = engine.answer(question(5), config(5))
    assert last.result
    assert last.result.tokens == own_answer(params(5))
    with pytest.raises(Cancelled):
        list(iterators[0])


def test_an_answer_that_could_not_be_started_has_no_updates() -> None:
    engine, _ = virtual()
    iterators = [engine.answer(question(seed), config(seed)) for seed in (*SEEDS, 5)]
    for iterator in iterators[:-1]:
        iterator.start()
    with pytest.raises(EngineBusy):
        iterators[-1].start()
    assert list(iterators[-1]) == []


def test_an_answer_that_was_started_and_dropped_ends() -> None:
    engine, verifier = virtual()
    engine.answer(question(1), config(1)).start()
    assert engine._open == []
    assert verifier._open is None


# The draft model ----------------------------------------------------------------------------------


def progress_of(committed: Tokens, sent: Tokens) -> DraftProgress:
    progress = DraftProgress()
    progress.opened(AnswerRequest(1, question(1), params(1), "speculative", committed=committed))
    if sent:
        parents = (0, *range(1, len(sent)))
        progress.sent(DraftMessage(1, 0, len(committed), 1, sent, parents))
    return progress


def test_a_step_is_worth_what_it_adds_to_the_answer() -> None:
    new, sent = progress_of((0, 1), ()), progress_of((0, 1), (1, 0))
    prior = new.agreement.value
    assert new.worth(2) == pytest.approx(1 + prior)
    assert new.worth(4) == pytest.approx(1 + prior**3)
    assert sent.worth(4) == pytest.approx(prior**3), "its next pass waits for nothing"
    # Of two drafted tokens the first was right, the second was not.
    sent.received(Commit(1, 0, 2, (1, 1), 1, 1, False))
    assert sent.worth(4) == pytest.approx(1 + sent.agreement.value)
    assert sent.agreement.count == 2
    right = progress_of((0, 1), (1, 0))
    right.received(Commit(1, 0, 2, (1, 0, 1), 2, 1, False))
    assert right.agreement.value > prior > sent.agreement.value


@pytest.mark.parametrize("kind", [Threads, VirtualProcesses])
def test_the_next_step_goes_to_whom_it_is_worth_most(kind: type[Processes]) -> None:
    clock = ProcessClock()
    processes = VirtualProcesses(clock) if kind is VirtualProcesses else Threads()
    arbiter, order = DraftArbiter(processes, clock), list[float]()

    def step(worth: float) -> None:
        with arbiter.turn(worth):
            processes.change(lambda: order.append(worth))

    waiting: list[float] = [0.3, 1.7, 0.9, 1.2]
    with arbiter.turn(0.0):
        for worth in waiting:
            processes.spawn(lambda worth=worth: step(worth))  # type: ignore[misc]
        assert processes.wait(lambda: len(arbiter._wanted) == len(waiting), 10)
        assert not processes.wait(lambda: bool(order), 0.05), "one at a time"
    assert processes.wait(lambda: len(order) == len(waiting), 10)
    assert order == sorted(waiting, reverse=True)


def test_a_turn_ends_whatever_happens() -> None:
    arbiter = DraftArbiter(Threads(), WallClock())
    with pytest.raises(ZeroDivisionError), arbiter.turn(1.0):
        raise ZeroDivisionError
    with arbiter.turn(1.0):
        pass


def test_closing_waits_for_no_step_and_comes_after_it() -> None:
    """Also in the thread that runs one: a collector may close there what nobody holds."""
    arbiter, closed = DraftArbiter(Threads(), WallClock()), list[str]()
    arbiter.close(lambda: closed.append("idle"))
    assert closed == ["idle"]
    with arbiter.turn(1.0):
        arbiter.close(lambda: closed.append("busy"))
        assert closed == ["idle"]
    assert closed == ["idle", "busy"]


def test_answers_in_one_step_fail_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A shared step that fails is run again for each, and only who fails then is told."""

    class Fragile(TableModel):
        def score_batch(self, requests: object) -> list[Scored]:
            raise OutOfMemory("no room for a shared step")

    pair = ModelPair(TableModel(TARGET), Fragile(POOR_DRAFT), SilentCodec(), (STOP,))
    engine, _ = virtual_engine(pair, LINK, HARDWARE, config(1))
    configs = [config(seed, "speculative") for seed in SEEDS]
    assert run(engine, configs)[0] == [own_answer(each.params) for each in configs]
    assert "a draft step for" in caplog.text
