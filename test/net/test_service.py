"""What a running cloud does about strangers, revoked keys and its own end, over real sockets."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from test.edge.test_not_finite import HarmedContext
from test.net.test_sockets import CLOCK, HELLO, cloud, decode, edge, own_answer, wait_for_ever
from test.tables import CERTAIN_DRAFT, TARGET, TableContext, TableModel
from vlm_spec_decode.core.errors import CloudRefused, CloudUnreachable
from vlm_spec_decode.core.types import RULES, AnswerRequest, Commit, Observation, SamplingParams
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink

pytestmark = pytest.mark.net

PARAMS = SamplingParams(temperature=1.0, max_tokens=60, seed=3)
PATIENT_S = 60.0


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    keys.generate(tmp_path)
    return tmp_path


class Stepwise(TableContext):
    def score(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        time.sleep(0.02)
        return super().score(*args, **kwargs)


class StepwiseModel(TableModel):
    def open(self, observation: Observation) -> TableContext:
        self.contexts.append(Stepwise(self.table))
        return self.contexts[-1]


def eventually(holds: Callable[[], bool]) -> None:
    deadline_s = CLOCK.now() + PATIENT_S
    while not holds():
        assert CLOCK.now() < deadline_s
        CLOCK.sleep(0.02)


def receive(verifier: RemoteVerifier, count: int, before: list[int] | None = None) -> list[int]:
    said = list(before or ())
    while len(said) < count:
        event = verifier.wait(PATIENT_S)
        assert isinstance(event, Commit)
        assert event.start == len(said)
        said += event.tokens
    return said


def ask_for_ever(verifier: RemoteVerifier) -> None:
    for answer in itertools.count(2):
        decode(verifier, "autoregressive", PARAMS, answer)


def test_a_key_is_added_and_taken_away_while_the_cloud_serves(key_folder: Path) -> None:
    with cloud(key_folder) as server:
        keys.add_robot(key_folder, "rex")
        with edge(server.address, key_folder / "robots" / "rex", give_up_s=3.0) as verifier:
            verifier.connect(timeout_s=PATIENT_S)
            assert decode(verifier, "autoregressive", PARAMS, 1) == own_answer(PARAMS)
            (key_folder / "authorized" / "rex.key").unlink()
            with pytest.raises(CloudUnreachable):
                ask_for_ever(verifier)
        with edge(server.address, key_folder) as verifier:
            verifier.connect(timeout_s=PATIENT_S)
            assert decode(verifier, "autoregressive", PARAMS, 1) == own_answer(PARAMS)


@pytest.mark.parametrize("end", ["stop", "drain"])
def test_an_answer_goes_on_at_the_next_address(key_folder: Path, end: str, tmp_path: Path) -> None:
    """Of a cloud that is gone the edge hears nothing; one that drains ends the answer, and no other."""
    timing = ProtocolTiming(give_up_s=PATIENT_S, switch_cloud_s=0.5, busy_s=PATIENT_S)
    with (
        cloud(key_folder, StepwiseModel(TARGET)) as first,
        cloud(key_folder, StepwiseModel(TARGET)) as second,
    ):
        link = DealerLink(f"{first.address},{second.address}", keys.edge_keys(key_folder), CLOCK)
        verifier = RemoteVerifier(link, HELLO, CLOCK, timing)
        try:
            verifier.connect(timeout_s=PATIENT_S)
            verifier.open(AnswerRequest(1, Observation(None, "go"), PARAMS, "autoregressive"))
            assert verifier.clouds == f"{first.address},{second.address}"
            said = receive(verifier, 5)
            getattr(first, end)()
            while len(said) < 60:
                event = verifier.wait(PATIENT_S)
                assert isinstance(event, Commit)
                assert event.start == len(said)
                said += event.tokens
            assert tuple(said) == own_answer(PARAMS)
            assert bool(second.protocol.stats.opened) == (end == "stop")
            verifier.close()
            assert decode(verifier, "autoregressive", PARAMS, 2) == own_answer(PARAMS)
            assert second.protocol.stats.opened > 0
            assert verifier.clouds == f"{second.address},{first.address}"
        finally:
            verifier.disconnect()


def test_another_model_at_the_next_address_is_refused_by_name(key_folder: Path) -> None:
    from dataclasses import replace

    class Other(StepwiseModel):
        @property
        def card(self):  # type: ignore[no-untyped-def]
            return replace(super().card, revision="2")

    timing = ProtocolTiming(give_up_s=PATIENT_S, switch_cloud_s=0.5)
    other = Other(CERTAIN_DRAFT)
    with cloud(key_folder, StepwiseModel(TARGET)) as first, cloud(key_folder, other) as second:
        link = DealerLink(f"{first.address},{second.address}", keys.edge_keys(key_folder), CLOCK)
        verifier = RemoteVerifier(link, HELLO, CLOCK, timing)
        try:
            verifier.connect(timeout_s=PATIENT_S)
            verifier.open(AnswerRequest(1, Observation(None, "go"), PARAMS, "autoregressive"))
            receive(verifier, 3)
            first.stop()
            with pytest.raises(CloudRefused, match="model_changed"):
                wait_for_ever(verifier)
        finally:
            verifier.disconnect()


@pytest.mark.parametrize(("error", "name"), [(MemoryError, "out_of_memory"), (RuntimeError, "target_failed")])
def test_a_target_that_fails_refuses_one_answer_by_name_and_serves_the_next(
    key_folder: Path, error: type[Exception], name: str
) -> None:
    class Full(TableContext):
        def score(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            raise error

    class Sometimes(TableModel):
        def open(self, observation: Observation) -> TableContext:
            kind = Full if not self.contexts else TableContext
            self.contexts.append(kind(self.table))
            return self.contexts[-1]

    with cloud(key_folder, Sometimes(TARGET)) as server, edge(server.address, key_folder) as verifier:
        verifier.connect(timeout_s=PATIENT_S)
        with pytest.raises(CloudRefused, match=name):
            decode(verifier, "autoregressive", PARAMS, 1)
        assert decode(verifier, "autoregressive", PARAMS, 2) == own_answer(PARAMS)
        smaller = server.protocol.limits.batch // (2 if error is MemoryError else 1)
        assert server.protocol.scheduler.batch == smaller


class SometimesNotFinite(TableModel):
    """NaN from the third token on, for those who ask for it."""

    def open(self, observation: Observation) -> TableContext:
        is_harmed = observation.instruction == "nan"
        self.contexts.append(
            HarmedContext(self.table, harm=(np.nan,) * 3, from_length=2 if is_harmed else 1_000_000)
        )
        return self.contexts[-1]


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_without_numbers_ends_by_name_and_its_neighbours_go_on(key_folder: Path, rule: str) -> None:
    """Robots share passes with one whose logits are NaN, under every strategy: nobody else notices."""
    params = SamplingParams(temperature=1.0, max_tokens=12, seed=3, rule=rule)
    target = SometimesNotFinite(TARGET)
    with (
        cloud(key_folder, target) as server,
        edge(server.address, key_folder) as harmed,
        edge(server.address, key_folder) as neighbour,
    ):
        harmed.connect(timeout_s=PATIENT_S)
        neighbour.connect(timeout_s=PATIENT_S)
        alone = decode(neighbour, "autoregressive", params, 1)
        for answer, name in enumerate(STRATEGIES, start=2):
            neighbour.open(AnswerRequest(answer, Observation(None, "go"), params, "autoregressive"))
            request = AnswerRequest(answer, Observation(None, "nan"), params, name)
            harmed.open(request)
            drafter = TableModel(TARGET).open(request.observation)
            config = EdgeConfig(answer=answer, params=params, draft_length=3, timeout_s=20)
            with pytest.raises(CloudRefused, match="not_finite: the target model's logits hold NaN"):
                list(strategy(name).decode(Sequence(), drafter, harmed, CLOCK, config))
            assert tuple(receive(neighbour, 12)) == alone
            neighbour.close()
        eventually(lambda: all(context.closed for context in target.contexts))


def test_a_robot_that_vanishes_leaves_nothing_behind(key_folder: Path) -> None:
    target = StepwiseModel(TARGET)
    with cloud(key_folder, target) as server:
        with edge(server.address, key_folder) as verifier:
            verifier.connect(timeout_s=PATIENT_S)
            verifier.open(AnswerRequest(1, Observation(None, "go"), PARAMS, "autoregressive"))
            receive(verifier, 2)
            verifier._connection.link.close()  # no Close: as if it had lost its power
        server.protocol.expire(CLOCK.now() + server.protocol.limits.idle_s + 1)
        eventually(lambda: all(context.closed for context in target.contexts))
        assert not server.protocol.requests
    shutil.rmtree(key_folder / "authorized")
