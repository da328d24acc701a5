"""State codes of firmware that no table knows: named, configurable, and nothing sent to who may walk."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.codes import (
    BUSY,
    POSTURE_CODES,
    STATE_CODES,
    WALKING_CODES,
    StateTable,
    is_down,
    posture_of,
    steps_to_walk,
    unknown,
)


def state(
    code: int, *, speed_mps: float = 0.0, down: bool = False, table: StateTable | None = None
) -> RobotState:
    known = (table or StateTable()).canonical(code)
    return RobotState(
        1.0, 1.0, 0.0, 0.0, 0.0, speed_mps, 0.0, 0.0,
        posture="unknown" if known is None else posture_of(known), code=code if known is None else known,
        reported_code=code, is_down=down,
    )  # fmt: skip


def test_every_published_code_is_known_and_keeps_its_meaning() -> None:
    for code in STATE_CODES:
        known = StateTable().canonical(code)
        assert known == (1015 if code == 2010 else code)


@pytest.mark.parametrize("word", POSTURE_CODES)
def test_a_code_can_be_named_in_the_configuration(word: str) -> None:
    table = StateTable.parse(f"2077 {word}, 9001=walk")
    assert table.canonical(2077) == POSTURE_CODES[word]
    assert state(9001, table=table).can_walk
    assert (POSTURE_CODES[word] in WALKING_CODES) == (word in ("walk", "stand"))


def test_what_the_configuration_says_goes_before_the_table() -> None:
    assert StateTable.parse("1013 lie").canonical(1013) == POSTURE_CODES["lie"]


@pytest.mark.parametrize(
    "text", ["walk 2077", "2077", "2077 stroll", "2077 walk 2078 walk", "-1 walk", "nan walk"]
)
def test_a_table_that_cannot_be_read_is_named_with_what_is_known(text: str) -> None:
    with pytest.raises(ConfigError, match=r"state_codes: .*busy"):
        StateTable.parse(text)


def message(height: float, speed: float, gait: int, mode: int, force: int) -> SimpleNamespace:
    return SimpleNamespace(
        body_height=height, velocity=[speed, 0.0, 0.0], yaw_speed=0.0, gait_type=gait, mode=mode,
        foot_force=[force] * 4,
    )  # fmt: skip


def test_a_body_only_lies_if_everything_says_so() -> None:
    heights = (float("nan"), 0.0, 0.02, 0.1, 0.15, 0.2, 0.31, 9.0)
    for height, speed, gait, mode, force in itertools.product(
        heights, (0.0, 0.3, float("nan")), (0, 1), (0, 1, 3, 5, 6, 7), (0, 60)
    ):
        lies = is_down(message(height, speed, gait, mode, force))
        assert lies == (height == 0.1 and speed == 0.0 and gait == 0 and mode in (0, 5, 7) and force == 0)


def test_nothing_is_sent_to_a_robot_that_walks_or_might() -> None:
    for code, speed, down in itertools.product(range(0, 6000), (0.0, 0.5), (False, True)):
        found = state(code, speed_mps=speed, down=down and not speed)
        steps = steps_to_walk(found)
        calls = [step.call for step in steps or () if step.call]
        if not found.is_known and not found.is_down:
            assert steps is None
        if speed or found.can_walk or code in BUSY:
            assert not calls, code


def test_what_is_told_names_the_code_and_what_to_do() -> None:
    said = unknown(state(2077))
    assert re.search(r"state 2077\b.*nothing was sent.*remote.*state_codes:='2077 walk'", said)
    assert "moves at 0.50 m/s" in unknown(state(1001, speed_mps=0.5))
