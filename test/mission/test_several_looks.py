"""Several open answers as the looks of a search: what comes is told with the number of its frame."""

from __future__ import annotations

import pytest

from test.edge.test_open_answers import SEEDS, question, virtual
from test.net.test_sockets import own_answer
from vlm_spec_decode.core.errors import Cancelled
from vlm_spec_decode.core.types import SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.mission.search import Looks
from vlm_spec_decode.mission.several_looks import SeveralLooks

LASTING = SamplingParams(temperature=1.0, max_tokens=24, seed=3)
SAME = own_answer(LASTING)


def looks_of(engine: Engine, step_s: float = 0.02) -> SeveralLooks:
    """Looks of an engine in virtual time, each of whose questions has the same answer."""
    engine.config = EngineConfig(params=LASTING, free_text=True)
    return SeveralLooks(engine, pause=lambda: engine.clock.now() + step_s)


def test_every_commit_has_the_number_of_its_frame() -> None:
    engine, _ = virtual()
    looks: Looks = looks_of(engine)
    assert looks.capacity == 4
    said: dict[int, Tokens] = {}
    for number in (3, 5, 8):
        looks.open(number, question(number))
    while commit := looks.next(lambda: False):
        number, update = commit
        said[number] = said.get(number, ()) + update.tokens
    assert said == dict.fromkeys((3, 5, 8), SAME)


def test_a_mission_that_may_look_again_is_told_so_while_it_waits() -> None:
    engine, _ = virtual()
    looks = looks_of(engine)
    looks.open(1, question(1))
    assert looks.next(lambda: engine.clock.now() >= 0.1) is None
    assert engine.clock.now() == pytest.approx(0.1)
    looks.open(2, question(2))
    commit = looks.next(lambda: False)
    assert commit
    assert commit[0] == 1
    assert engine.clock.now() > 0.1


def test_what_has_come_is_told_before_the_mission_looks_again() -> None:
    engine, _ = virtual()
    looks = looks_of(engine, step_s=5.0)
    looks.open(1, question(1))
    assert looks.next(lambda: True) is None, "nothing has come yet"
    assert looks.next(lambda: False)
    engine.clock.sleep(10.0)
    commits = list(iter(lambda: looks.next(lambda: True), None))
    assert len(commits) > 1
    assert commits[-1][1].result


def test_the_winner_is_kept_and_the_others_end() -> None:
    engine, verifier = virtual()
    looks = looks_of(engine)
    for number, seed in enumerate(SEEDS, 1):
        looks.open(number, question(seed))
    commit = looks.next(lambda: False)
    assert commit
    winner = commit[0]
    looks.cancel(keep=winner)
    assert len(verifier._cloud._answers) == 1
    while commit := looks.next(lambda: False):
        assert commit[0] == winner
        last = commit[1]
    assert last.result
    assert last.result.tokens == SAME
    looks.cancel()
    looks.cancel()
    assert engine.has_room


def test_a_cancel_of_the_engine_ends_the_search() -> None:
    engine, _ = virtual()
    looks = looks_of(engine)
    looks.open(1, question(1))
    engine.cancel()
    with pytest.raises(Cancelled):
        looks.next(lambda: False)
