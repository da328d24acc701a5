"""The gate: every reason has its name, nothing out of limits passes, whatever the plan."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.types import (
    ACTION_TYPES,
    Action,
    Done,
    Forward,
    Hello,
    Look,
    Rise,
    Sit,
    StandDown,
    StandUp,
    Stop,
    Strafe,
    Stretch,
    Turn,
    Wait,
)
from vlm_spec_decode.control.safety import SafetyGate, contains, crosses, motion_direction, path_stays_inside
from vlm_spec_decode.core.errors import ActionRefused, ConfigError
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.codes import WALKING_CODES, posture_of
from vlm_spec_decode.robot.go2.driver import ROBOT as GO2

STANDING = RobotState(10.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
SQUARE = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
INF = math.inf


def in_state(code: int) -> RobotState:
    """What a Go2's driver says of a standing body in this state of its machine."""
    return replace(STANDING, code=code, posture=posture_of(code))


REASONS = {
    "limit_distance",
    "limit_angle",
    "limit_tilt",
    "limit_duration",
    "stale_frame",
    "stale_state",
    "obstacle",
    "geofence",
    "battery",
    "mode",
}


def reason(
    action: Action,
    state: RobotState = STANDING,
    frame_age_s: float = 0.1,
    state_age_s: float = 0.0,
    **limits: object,
) -> str:
    """Return why the gate refuses, or an empty text."""
    try:
        SafetyGate(SafetyLimits.from_mapping(limits)).check(action, state, frame_age_s, state_age_s)
    except ActionRefused as refusal:
        return refusal.reason
    return ""


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Forward(3.0), ""),
        (Forward(3.01), "limit_distance"),
        (Forward(-3.01), "limit_distance"),
        (Forward(math.nan), "limit_distance"),
        (Forward(INF), "limit_distance"),
        (Strafe(4), "limit_distance"),
        (Turn(180), ""),
        (Turn(-180.1), "limit_angle"),
        (Turn(math.nan), "limit_angle"),
        (Look(20, -25), ""),
        (Look(20.1, 0), "limit_tilt"),
        (Look(0, 26), "limit_tilt"),
        (Wait(10), ""),
        (Wait(10.1), "limit_duration"),
        (Wait(-1), "limit_duration"),
        (Wait(math.nan), "limit_duration"),
    ],
)
def test_numeric_limits(action: Action, expected: str) -> None:
    assert reason(action) == expected


@pytest.mark.parametrize("age_s", [5.1, 1e9, -0.6, math.nan, INF, -INF])
def test_stale_frames_move_nothing_but_never_forbid_to_stop(age_s: float) -> None:
    assert reason(Forward(1), frame_age_s=age_s) == "stale_frame"
    assert reason(Sit(), frame_age_s=age_s) == "stale_frame"
    for action in (Stop(), Done(), Wait(1)):
        assert reason(action, frame_age_s=age_s) == ""


@pytest.mark.parametrize("age_s", [0.31, math.nan, INF])
def test_stale_state(age_s: float) -> None:
    assert reason(Turn(10), state_age_s=age_s) == "stale_state"
    assert reason(Stop(), state_age_s=age_s) == ""


def test_a_pose_that_is_no_number_is_no_state() -> None:
    assert reason(Forward(1), replace(STANDING, x_m=math.nan)) == "stale_state"


@pytest.mark.parametrize(
    ("action", "side"), [(Forward(1), 0), (Strafe(1), 1), (Forward(-1), 2), (Strafe(-1), 3)]
)
def test_obstacle_counts_in_the_direction_of_motion_only(action: Action, side: int) -> None:
    for where in range(4):
        near = [INF] * 4
        near[where] = 0.09
        state = replace(STANDING, range_obstacle_m=tuple(near))
        assert reason(action, state) == ("obstacle" if where == side else "")
        assert reason(Turn(30), state) == ""


def test_a_range_that_is_no_number_is_an_obstacle() -> None:
    assert reason(Forward(1), replace(STANDING, range_obstacle_m=(math.nan, INF, INF, INF))) == "obstacle"


def test_approach_to_half_a_metre_from_the_centre_is_allowed() -> None:
    """The nose is 0.35 m before the centre: 0.15 m of range is more than the default stop distance."""
    assert reason(Forward(0.1), replace(STANDING, range_obstacle_m=(0.15, INF, INF, INF))) == ""


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Forward(1), "battery"),
        (Turn(1), "battery"),
        (StandUp(), "battery"),
        (Hello(), "battery"),
        (Sit(), ""),
        (StandDown(), ""),
        (Stop(), ""),
        (Wait(1), ""),
        (Done(), ""),
    ],
)
def test_low_battery_allows_only_what_saves_it(action: Action, expected: str) -> None:
    assert reason(action, replace(STANDING, battery_soc=0.19)) == expected
    assert reason(action, replace(STANDING, battery_soc=math.nan)) == expected


@pytest.mark.parametrize("soc", [math.nan, INF, -INF, -0.1, 1.01, 9.0, 255.0])
def test_what_is_no_charge_passes_as_none(soc: float) -> None:
    assert reason(Forward(1), replace(STANDING, battery_soc=soc)) == "battery"
    assert reason(Stop(), replace(STANDING, battery_soc=soc)) == ""


@pytest.mark.parametrize("value", [math.nan, INF, -INF, 1e7, -1e30])
@pytest.mark.parametrize(
    "field", ["x_m", "y_m", "yaw_rad", "roll_rad", "pitch_rad", "vx_mps", "vy_mps", "vyaw_radps"]
)
def test_a_pose_or_speed_that_is_no_number_moves_nothing_and_ends_what_moves(
    field: str, value: float
) -> None:
    state = replace(STANDING, **{field: value})
    assert reason(Forward(1), state) == "stale_state"
    with pytest.raises(ActionRefused, match="no number"):
        SafetyGate().check_motion(Forward(1), state, 0.0)


@pytest.mark.parametrize(
    "action", [Forward(1), Turn(9), Look(5, 5), Hello(), Sit(), StandUp(), StandDown(), Rise()]
)
def test_a_state_that_nobody_knows_allows_no_posture_and_says_where_to_name_it(action: Action) -> None:
    state = in_state(2077)
    with pytest.raises(ActionRefused, match=r"state 2077 is not known.*state_codes"):
        SafetyGate().check(action, state, 0.1)
    assert reason(Stop(), state) == ""


@pytest.mark.parametrize("code", [1001, 1002, 1004, 1006, 1007, 2011, 0])
@pytest.mark.parametrize("action", [Forward(1), Strafe(1), Turn(9), Look(5, 5), Hello(), Stretch()])
def test_legs_are_needed(code: int, action: Action) -> None:
    assert reason(action, in_state(code)) == "mode"


def test_sitting_is_left_only_by_rising() -> None:
    sitting = replace(in_state(1007), pitch_rad=-0.5)
    refused = {name for name, kind in ACTION_TYPES.items() if kind in {StandUp, StandDown, Hello, Stretch}}
    assert {name for name in refused if reason(ACTION_TYPES[name](), sitting) == "mode"} == refused
    assert reason(Rise(), sitting) == ""
    assert reason(Rise(), STANDING) == "mode"
    assert reason(Sit(), in_state(1001)) == "mode"


def test_a_fallen_robot_does_not_walk() -> None:
    assert reason(Forward(1), replace(STANDING, roll_rad=0.6)) == "mode"


def test_modes_are_configurable_within_what_walks() -> None:
    assert reason(Forward(1), in_state(1016), modes=[1013]) == "mode"
    with pytest.raises(ConfigError, match="1001"):
        GO2.spec.narrowed(SafetyLimits.from_mapping({"modes": [1013, 1001]}))


@pytest.mark.parametrize(
    ("action", "x", "yaw", "expected"),
    [
        (Forward(0.9), 0.0, 0.0, ""),
        (Forward(1.1), 0.0, 0.0, "geofence"),
        (Forward(-1.1), 0.0, 0.0, "geofence"),
        (Strafe(1.1), 0.0, 0.0, "geofence"),
        (Forward(1.1), 0.0, math.pi / 4, ""),
        (Forward(1.0), 1.5, math.pi, ""),
        (Forward(1.0), 1.5, 0.0, "geofence"),
        (Turn(90), 1.5, 0.0, ""),
    ],
)
def test_geofence_is_left_only_inwards(action: Action, x: float, yaw: float, expected: str) -> None:
    assert reason(action, replace(STANDING, x_m=x, yaw_rad=yaw), geofence=SQUARE) == expected


def test_geofence_may_have_a_bay() -> None:
    """Both ends inside a U-shaped fence, the straight way between them not."""
    bay = ((0.0, 0.0), (3.0, 0.0), (3.0, 2.0), (2.0, 2.0), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (0.0, 2.0))
    assert contains(bay, (0.5, 1.5))
    assert contains(bay, (2.5, 1.5))
    assert not path_stays_inside(bay, (0.5, 1.5), (2.5, 1.5))
    assert path_stays_inside(bay, (0.5, 0.5), (2.5, 0.5))
    assert crosses((0, 0), (2, 2), (0, 2), (2, 0))
    assert not crosses((0, 0), (1, 1), (0, 2), (2, 1.5))


def test_plans_have_a_length() -> None:
    gate = SafetyGate(SafetyLimits(max_actions=3))
    gate.check_plan((Stop(),) * 3)
    with pytest.raises(ActionRefused, match="too_many_actions"):
        gate.check_plan((Stop(),) * 4)
    with pytest.raises(ActionRefused, match="limit_angle"):
        gate.check_plan((Stop(), Turn(720)))


finite = st.floats(-50, 50)
anything = st.floats(allow_nan=True, allow_infinity=True)
any_action: st.SearchStrategy[Action] = st.one_of(
    st.builds(Forward, anything),
    st.builds(Strafe, anything | finite),
    st.builds(Turn, st.floats(-400, 400) | anything),
    st.builds(Look, st.floats(-60, 60), anything),
    st.builds(Wait, anything | finite),
    st.sampled_from([Stop(), Done(), StandUp(), StandDown(), Sit(), Rise(), Hello(), Stretch()]),
)


def said_by_a_go2(code: int, **fields: Any) -> RobotState:
    return RobotState(code=code, posture=posture_of(code), **fields)


any_state = st.builds(
    said_by_a_go2,
    stamp_s=st.just(0.0),
    received_s=st.just(0.0),
    x_m=st.floats(-2, 2) | anything,
    y_m=st.floats(-2, 2),
    yaw_rad=st.floats(-4, 4),
    vx_mps=finite,
    vy_mps=finite,
    vyaw_radps=finite,
    roll_rad=st.floats(-1, 1) | anything,
    code=st.sampled_from([100, 1001, 1002, 1004, 1006, 1007, 1013, 1015]),
    battery_soc=st.floats(0, 1) | anything,
    range_obstacle_m=st.tuples(*[st.floats(0, 3) | anything] * 4),
)


@settings(max_examples=2000, deadline=None)
@given(any_action, any_state, st.floats(-1, 8) | anything, st.floats(0, 1) | anything)
def test_whatever_passes_is_within_every_limit(
    action: Action, state: RobotState, frame_age_s: float, state_age_s: float
) -> None:
    """The gate's promise, said again from the outside and not in its own words."""
    why = reason(action, state, frame_age_s, state_age_s, geofence=SQUARE)
    if why:
        assert why in REASONS
        return
    if isinstance(action, (Stop, Done)):
        return
    if isinstance(action, Wait):
        assert 0 <= action.duration_s <= 10
        return
    assert -0.5 <= frame_age_s <= 5
    assert 0 <= state_age_s <= 0.3
    if isinstance(action, (Forward, Strafe, Turn, Look, Hello, Stretch, StandUp, Rise)):
        assert state.battery_soc >= 0.2
    if isinstance(action, (Forward, Strafe, Turn, Look, Hello, Stretch)):
        assert state.code in WALKING_CODES
        assert abs(state.roll_rad) <= math.radians(30)
    if isinstance(action, (Forward, Strafe)):
        assert abs(action.distance_m) <= 3
        sideways = math.pi / 2 if isinstance(action, Strafe) else 0
        x = state.x_m + action.distance_m * math.cos(state.yaw_rad + sideways)
        y = state.y_m + action.distance_m * math.sin(state.yaw_rad + sideways)
        was_inside = max(abs(state.x_m), abs(state.y_m)) < 1
        assert not was_inside or max(abs(x), abs(y)) <= 1 + 1e-9
        way = motion_direction(action)
        if way is not None:
            side = {(1, 0): 0, (0, 1): 1, (-1, 0): 2, (0, -1): 3}[(int(way[0]), int(way[1]))]
            assert state.range_obstacle_m[side] > 0.1
    if isinstance(action, Turn):
        assert abs(action.angle_deg) <= 180
    if isinstance(action, Look):
        assert abs(action.pitch_deg) <= 20
        assert abs(action.yaw_deg) <= 25


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"max_sped_mps": 1}, "max_sped_mps"),
        ({"max_speed_mps": "fast"}, "max_speed_mps"),
        ({"max_speed_mps": True}, "max_speed_mps"),
        ({"max_speed_mps": 0}, "max_speed_mps"),
        ({"max_speed_mps": 3.0}, "max_speed_mps"),
        ({"max_speed_mps": math.nan}, "max_speed_mps"),
        ({"max_actions": 2.5}, "max_actions"),
        ({"watchdog_s": 0}, "watchdog_s"),
        ({"obstacle_stop_m": -1}, "obstacle_stop_m"),
        ({"geofence": [[0, 0], [1, 1]]}, "three corners"),
        ({"geofence": [[0, 0], [1, 1], [1, math.inf]]}, "finite"),
        ({"geofence": "here"}, "geofence"),
        ({"geofence": [[0, 0, 0]]}, "pair"),
        ({"modes": 1013}, "modes"),
    ],
)
def test_bad_settings_are_refused_by_name(data: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        SafetyLimits.from_mapping(data)


def test_settings_are_read() -> None:
    limits = SafetyLimits.from_mapping(
        {"max_speed_mps": 1, "max_actions": 4, "geofence": [[0, 0], [1, 0], [1, 1]]}
    )
    assert limits.max_speed_mps == 1.0
    assert limits.max_actions == 4
    assert limits.geofence == ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    assert SafetyLimits.from_mapping({}) == SafetyLimits()
