"""Several answers of one robot over real sockets, with encryption and threads: each as if it were alone."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from test.edge.test_open_answers import steps_of
from test.net.line import line_to
from test.net.test_service import StepwiseModel, eventually
from test.net.test_sockets import CLOCK, HELLO, IMAGE, cloud, own_answer
from test.tables import POOR_DRAFT, STOP, TARGET, TableModel
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.core.errors import CloudRefused, CloudUnreachable
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.open_answers import OpenAnswers
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.strategies.registry import STRATEGIES
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink

pytestmark = pytest.mark.net

SEEDS = (1, 7, 17, 40)


def engine_at(address: str, folder: Path, give_up_s: float = 20.0) -> Engine:
    link = DealerLink(address, keys.edge_keys(folder), CLOCK)
    verifier = RemoteVerifier(link, HELLO, CLOCK, ProtocolTiming(give_up_s=give_up_s, handshake_s=20.0))
    verifier.connect(timeout_s=20.0)
    return Engine(TableModel(POOR_DRAFT), SilentCodec(), verifier, CLOCK)


def config(seed: int, name: str, temperature: float = 1.0) -> EngineConfig:
    params = SamplingParams(temperature=temperature, max_tokens=24, stop_ids=(STOP,), seed=seed)
    return EngineConfig(strategy=name, params=params, free_text=True)


def question(number: int) -> Observation:
    return Observation(IMAGE, f"go {number}")


def tokens_of(engine: Engine, configs: list[EngineConfig]) -> list[Tokens]:
    said: dict[object, Tokens] = {}
    with OpenAnswers(engine) as answers:
        asked = [answers.ask(question(each.params.seed), each) for each in configs]
        for step in steps_of(answers):
            assert step.error is None
            if step.update:
                said[step.answer] = said.get(step.answer, ()) + step.update.tokens
    return [said[answer] for answer in asked]


def test_each_of_several_is_the_answer_asked_alone(key_folder: Path) -> None:
    with cloud(key_folder) as server:
        engine = engine_at(server.address, key_folder)
        for name, temperature in itertools.product(STRATEGIES, (0.0, 1.0)):
            configs = [config(seed, name, temperature) for seed in SEEDS]
            assert tokens_of(engine, configs) == [own_answer(each.params) for each in configs], name
        mixed = [config(seed, name) for seed, name in zip(SEEDS, STRATEGIES, strict=False)]
        assert tokens_of(engine, mixed) == [own_answer(each.params) for each in mixed]
        assert not server.protocol.requests or eventually(lambda: not server.protocol.requests) is None
        engine._verifier.disconnect()


def test_they_share_passes_and_each_thread_may_iterate_its_own(key_folder: Path) -> None:
    target = StepwiseModel(TARGET)
    configs = [
        EngineConfig(
            strategy="autoregressive",
            params=SamplingParams(temperature=1.0, max_tokens=20, seed=seed),
            free_text=True,
        )
        for seed in SEEDS
    ]
    said: dict[int, Tokens] = {}

    def read(each: EngineConfig) -> None:
        *_, last = engine.answer(question(each.params.seed), each)
        assert last.result
        said[each.params.seed] = last.result.tokens

    with cloud(key_folder, target) as server:
        engine = engine_at(server.address, key_folder)
        threads = [threading.Thread(target=read, args=(each,)) for each in configs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert server.protocol.stats.largest_batch >= 3
        engine._verifier.disconnect()
    assert said == {each.params.seed: own_answer(each.params) for each in configs}


def test_the_winner_goes_on_and_the_cloud_frees_the_others_at_once(key_folder: Path) -> None:
    target = StepwiseModel(TARGET)
    lasting = SamplingParams(temperature=1.0, max_tokens=40, seed=3)
    with cloud(key_folder, target) as server:
        engine = engine_at(server.address, key_folder)
        with OpenAnswers(engine) as answers:
            for seed in SEEDS:
                answers.ask(
                    question(seed), EngineConfig(strategy="autoregressive", params=lasting, free_text=True)
                )
            step = answers.next()
            assert step
            answers.keep(step.answer)
            eventually(lambda: len(server.protocol.requests) == 1)
            assert answers.has_room
            *_, last = steps_of(answers)
            assert last.update
            assert last.update.result
            assert last.update.result.tokens == own_answer(lasting)
        engine._verifier.disconnect()


def test_a_cloud_that_is_lost_ends_all_of_them_and_the_next_question_finds_it_again(key_folder: Path) -> None:
    lasting = EngineConfig(
        strategy="autoregressive", params=SamplingParams(temperature=1.0, max_tokens=60), free_text=True
    )
    with (
        cloud(key_folder, StepwiseModel(TARGET)) as server,
        line_to(server.address) as line,
        OpenAnswers(engine := engine_at(line.address, key_folder, give_up_s=2.0)) as answers,
    ):
        asked = [answers.ask(question(seed), lasting) for seed in (1, 2, 3)]
        assert answers.next()
        line.cut()
        ended = {step.answer: step.error for step in steps_of(answers) if step.error}
        assert set(ended) == set(asked)
        assert all(isinstance(error, CloudUnreachable) for error in ended.values())
        line.mend()
        *_, last = engine.answer(question(7), config(7, "hybrid"))
        assert last.result
        assert last.result.tokens == own_answer(config(7, "hybrid").params)
        engine._verifier.disconnect()


def test_a_connection_that_breaks_is_a_pause_for_all_of_them(key_folder: Path) -> None:
    """The tokens of each are the same, and none is told twice or left out."""
    configs = [
        EngineConfig(
            strategy="autoregressive",
            params=SamplingParams(temperature=1.0, max_tokens=40, seed=seed),
            free_text=True,
        )
        for seed in SEEDS
    ]
    with cloud(key_folder, StepwiseModel(TARGET)) as server, line_to(server.address) as line:
        engine = engine_at(line.address, key_folder)
        said: dict[object, Tokens] = {}
        with OpenAnswers(engine) as answers:
            asked = [answers.ask(question(each.params.seed), each) for each in configs]
            for number, step in enumerate(steps_of(answers)):
                assert step.update
                said[step.answer] = said.get(step.answer, ()) + step.update.tokens
                if number == 20:
                    line.cut()
                    threading.Timer(0.5, line.mend).start()
        assert [said[answer] for answer in asked] == [own_answer(each.params) for each in configs]
        engine._verifier.disconnect()


def test_a_cloud_that_allows_fewer_says_so_for_the_one_too_many(key_folder: Path) -> None:

    lasting = EngineConfig(
        strategy="autoregressive",
        params=SamplingParams(temperature=1.0, max_tokens=30, seed=1),
        free_text=True,
    )
    with cloud(key_folder, StepwiseModel(TARGET)) as server:
        server.protocol.limits = replace(server.protocol.limits, sessions_per_peer=2)
        engine = engine_at(server.address, key_folder)
        with OpenAnswers(engine) as answers:
            asked = [answers.ask(question(seed), lasting) for seed in (1, 2, 3)]
            steps = list(steps_of(answers))
        (refused,) = [step for step in steps if step.error]
        assert refused.answer is asked[2]
        assert isinstance(refused.error, CloudRefused)
        assert refused.error.reason == "too_many_answers"
        finished = [step for step in steps if step.update and step.update.result]
        assert {step.answer for step in finished} == set(asked[:2])
        engine._verifier.disconnect()


def test_a_connection_that_is_closed_ends_all_who_wait_at_once(key_folder: Path) -> None:
    """Those whose question is sent, and those who ask a verifier of it later."""
    with cloud(key_folder) as server, line_to(server.address) as line:
        engine = engine_at(line.address, key_folder)
        line.cut()
        waiting, late = (engine.answer(question(seed), config(seed, "autoregressive")) for seed in (1, 2))
        waiting.start()
        threading.Timer(0.2, engine._verifier.disconnect).start()
        began_s = time.monotonic()
        for answer in (waiting, late):
            with pytest.raises(CloudUnreachable, match="the connection is closed"):
                list(answer)
        assert time.monotonic() - began_s < 3.0
