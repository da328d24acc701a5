"""A search that turns on while it asks ends where a stepwise one ends, and everything that stops it does."""

import itertools
import math
from dataclasses import replace

import pytest

from test.mission.turning import NOT_SEEN, Answer, MissionStatus, Plan, TurningWorld
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Turn
from vlm_spec_decode.edge.mission_loop import MAX_OBSTRUCTIONS
from vlm_spec_decode.mission.search import MAX_AHEAD_DEG, search_turn, tells_of, thing_words
from vlm_spec_decode.mission.state import LOOK_USED, LOOK_WORDS, RunnerConfig

STEPWISE = RunnerConfig(max_steps=12, search="stepwise")
IN_VIEW_DEG = 45.0


def box_at(bearing_deg):
    """Answers about a box at a bearing from the start: turned to, walked to, done."""

    def says(heading_deg, history):
        off_deg = math.degrees(math.remainder(math.radians(bearing_deg - heading_deg), 2 * math.pi))
        if "forward(1)" in history:
            return "the red box is here . done()"
        if abs(off_deg) > IN_VIEW_DEG:
            return (
                "i looked around and there is none . done()" if history.count("turn(60)") == 6 else NOT_SEEN
            )
        return f"the red box is there . turn({off_deg:.0f}) forward(1)"

    return says


def heading_deg(world):
    return math.degrees(math.remainder(world.rig.robot.true_pose[2], 2 * math.pi))


@pytest.mark.parametrize("bearing_deg", [80, 150, 200, 250, 290])
def test_it_finds_what_the_stepwise_search_finds_and_sooner(bearing_deg):
    turning, stepwise = TurningWorld(box_at(bearing_deg)), TurningWorld(box_at(bearing_deg), config=STEPWISE)
    assert turning.run().status == stepwise.run().status == "done"
    wanted_deg = math.remainder(bearing_deg, 360)
    for world in (turning, stepwise):
        assert math.remainder(heading_deg(world) - wanted_deg, 360) == pytest.approx(0, abs=5)
        x_m, y_m, _ = world.rig.robot.true_pose
        assert math.hypot(x_m, y_m) == pytest.approx(1.0, abs=0.12)
    if bearing_deg > 150:
        assert turning.time_s < 0.9 * stepwise.time_s
    # The models are told the same turns, so they know how much of the circle they have seen.
    histories = [
        [entry for entry in world.asked[-1].history if entry == "turn(60)"] for world in (turning, stepwise)
    ]
    assert histories[0] == histories[1]


def test_a_thing_that_is_not_there_is_given_up_after_the_circle():
    def says(_heading_deg, history):
        return "i looked around and there is none . done()" if len(history) == 6 else NOT_SEEN

    world = TurningWorld(says)
    assert world.run().status == "done"
    assert [len(asked.history) for asked in world.asked] == list(range(7))
    assert abs(heading_deg(world)) < 6
    assert world.time_s < 6 * 2.5 + 6


def test_what_is_found_and_done_is_faced():
    def says(heading_deg, _history):
        off_deg = math.degrees(math.remainder(math.radians(150 - heading_deg), 2 * math.pi))
        return NOT_SEEN if abs(off_deg) > IN_VIEW_DEG else "i see the red box . done()"

    world = TurningWorld(says)
    assert world.run().status == "done"
    assert abs(math.remainder(heading_deg(world) - 150, 360)) < IN_VIEW_DEG
    assert math.remainder(heading_deg(world) - 120, 360) == pytest.approx(0, abs=12)


def test_a_turn_that_is_blocked_each_time_ends_the_mission():
    world = TurningWorld(lambda *_: NOT_SEEN)
    move = world.rig.robot.move

    def stuck(vx_mps, vy_mps, vyaw_radps):
        move(vx_mps, vy_mps, 0.0)

    world.rig.robot.move = stuck
    ending = world.run()
    assert (ending.status, ending.reason) == ("refused", "blocked")
    assert len(list(world.asked)) <= MAX_OBSTRUCTIONS


def test_every_frame_is_taken_about_where_its_history_says():
    world = TurningWorld(box_at(250))
    world.run()
    for asked in world.asked[:5]:
        told_deg = 60.0 * len([entry for entry in asked.history if entry == "turn(60)"])
        off_deg = math.remainder(world.headings[asked.stamp_s] - told_deg, 360)
        assert abs(off_deg) < 12, asked.history


def test_the_robot_does_not_stand_between_the_views():
    world = TurningWorld(box_at(290), answer_s=1.0)
    world.run()
    moves = [(s, v) for s, v in world.rig.moves() if abs(v[2]) > 0.05]
    sweep = [s for s, _ in moves]
    gaps = [b - a for a, b in itertools.pairwise(sweep) if b - a > 0.3]
    # Only before the first answer's turn, at the end of the sweep, and around the walk.
    assert len(gaps) <= 2


def test_it_never_turns_further_than_allowed_beyond_what_was_answered():
    world = TurningWorld(box_at(290), answer_s=4.0)
    furthest = []
    tick = world.tick

    def watched():
        tick()
        if world.plan is not None and world.plan.origin == "search":
            answered = [a for a in world.of(Answer) if a.actions == (Turn(60.0),)]
            seen_deg = 60.0 * (len(answered) - 1)
            furthest.append(math.degrees(world.rig.robot.true_pose[2]) % 360 - seen_deg)

    world.tick = watched
    world.events._changed._tick = watched
    world.run()
    assert furthest
    assert max(furthest) <= MAX_AHEAD_DEG + 3


def test_answers_of_a_mission_are_numbered_upwards_and_once():
    world = TurningWorld(box_at(250))
    world.run()
    numbers = [answer.number for answer in world.of(Answer)]
    assert numbers == sorted(set(numbers))
    plans = [(plan.answer, plan.sequence) for plan in world.of(Plan)]
    assert plans == sorted(plans)
    carried_out = {plan.answer for plan in world.of(Plan) if plan.origin == "reprojected"}
    assert carried_out <= set(numbers)


def test_a_plan_is_told_anew_for_where_the_body_looks():
    world = TurningWorld(box_at(150))
    world.run()
    told = [plan for plan in world.of(Plan) if plan.origin == "reprojected"]
    assert told
    assert all(plan.stamp_s in world.headings for plan in told)
    assert any(
        isinstance(plan.actions[0], Turn) and plan.actions[0].angle_deg < 0 for plan in told if plan.actions
    )


def test_it_is_said_which_answer_the_robot_goes_by_and_what_became_of_the_others():
    world = TurningWorld(box_at(150))
    world.run()
    notes = [report for report in world.of(MissionStatus) if report.reason in LOOK_WORDS]
    (used,) = [note for note in notes if note.reason == LOOK_USED]
    assert used.detail.startswith(f"answer {used.step}, its frame ")
    assert "told anew as turn(" in used.detail
    asked = int(used.detail.split("asked as ")[1].split(",")[0])
    assert next(plan.answer for plan in world.of(Plan) if plan.origin == "reprojected") == used.step
    begun = [report.step for report in world.of(MissionStatus) if report.detail == "searching while it turns"]
    assert asked in begun
    assert len(begun) == len(set(begun)), "each look has its answer's own number"
    acting = [report for report in world.of(MissionStatus) if (report.state, report.reason) == ("acting", "")]
    assert all(report.detail.startswith("by a frame ") for report in acting)


@pytest.mark.parametrize("when_s", [3.2, 4.5, 6.5])
@pytest.mark.parametrize("what", ["estop", "cancel", "teleop", "mission"])
def test_what_stops_a_robot_stops_a_search(what, when_s):
    world = TurningWorld(box_at(290))
    at_s = world.rig.clock.now() + when_s
    world.at[at_s] = {
        "estop": lambda: world.rig.executor.estop(True),
        "cancel": world.rig.executor.cancel,
        "teleop": lambda: world.rig.executor.steer((0.0, 0.0, 0.0)),
        "mission": lambda: world.events.cancel("m", "superseded"),
    }[what]
    ending = world.run()
    assert ending.status == "cancelled"
    world.rig.go(1.0, heartbeat=False)
    assert world.rig.is_still
    assert world.time_s < when_s + 3.0


def test_a_cloud_that_is_lost_in_a_search_stops_the_robot():
    world = TurningWorld(box_at(290), config=RunnerConfig(max_steps=12, fallback="stop"))
    world.lose_cloud(lambda: len(world.asked) == 2)
    ending = world.run()
    assert (ending.status, ending.reason) == ("failed", "CloudUnreachable")
    world.rig.go(1.0, heartbeat=False)
    assert world.rig.is_still


def test_without_odometry_a_search_is_stepwise():
    world = TurningWorld(box_at(200), has_odometry=False)
    assert world.run().status == "done"
    assert {plan.origin for plan in world.of(Plan)} == {"answer"}


def test_a_plan_that_a_person_must_approve_is_not_turned_on():
    world = TurningWorld(lambda *_: NOT_SEEN, config=RunnerConfig(max_steps=2, approve_s=0.5))
    world.run(approve=True)
    assert not any(plan.actions for plan in world.of(Plan))


def test_a_jump_of_the_odometry_stops_the_robot_and_it_looks_again():
    world = TurningWorld(box_at(150))
    tick, jumped = world.tick, []

    def jumping():
        tick()
        views = [asked for asked in world.asked if asked.history]
        late = len(views) == 2 and world.rig.clock.now() > views[-1].stamp_s + 0.5
        if late and not jumped:
            jumped.append(world.rig.clock.now())
            world.events.poses.put(world.rig.clock.now() + 0.001, type(world.events.poses.newest)(50.0, 0.0))

    world.tick = jumping
    world.events._changed._tick = jumping
    assert world.run().status == "done"
    assert jumped
    told = [plan for plan in world.of(Plan) if plan.origin == "reprojected"]
    assert not any(plan.stamp_s <= jumped[0] for plan in told)
    assert any(not plan.actions and plan.origin == "search" for plan in world.of(Plan))


def test_a_jump_while_it_waits_for_an_answer_is_no_turn():
    """Counted as one, the robot would go on beyond what was answered."""
    world = TurningWorld(lambda *_: NOT_SEEN, answer_s=1.0, config=RunnerConfig(max_steps=6))
    tick, jumped, turned_deg = world.tick, [], []

    def jumping():
        tick()
        world.answer_s = 1.0 if len(world.of(Answer)) < 1 else 4.8
        waits = len(world.asked) == 2 and world.rig.clock.now() > world.asked[-1].stamp_s + 3
        if waits and world.rig.is_still and not jumped:
            jumped.append(world.rig.clock.now())
            x_m, y_m, yaw_rad = world.rig.robot.true_pose
            world.rig.robot.set_pose(x_m, y_m, yaw_rad - 1.5)
        if jumped and len(world.asked) == 2:
            turned_deg.append(abs(world.rig.robot.state().vyaw_radps))

    world.tick = jumping
    world.events._changed._tick = jumping
    world.run()
    assert jumped
    assert max(turned_deg) < 0.05, "it does not turn on before it has looked again"


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        (NOT_SEEN, Turn(60.0)),
        ("I don't see a chair. turn(-90)", Turn(-90.0)),
        ("There is no chair here, turn(60)", Turn(60.0)),
        ("the chair is left . turn(60)", None),
        ("ok . turn(180)", None),
        ("i do not see the box . turn(20)", None),
        ("i do not see the box . turn(60) forward(1)", None),
        ("i do not see the box . done()", None),
        ("another note: turn(60)", None),
    ],
)
def test_what_is_a_search(text, turn):
    assert search_turn(text, parse_answer(text)) == turn


def test_what_is_searched_is_told_by_the_denial_and_the_instruction():
    asked = "move yourself to the cyan chair"
    thing = thing_words("i see a red box left . i do not see the cyan chair . turn ( 60 )", asked)
    assert thing == {"cyan", "chair"}
    assert tells_of("i see a cyan chair left .", thing)
    assert tells_of("i see a red box , a cyan chair left , a", thing)
    assert not tells_of("i see a cyan chair", thing)  # the phrase may go on
    assert not tells_of("i see a cyan box , a red chair .", thing)
    assert not tells_of("i do not see the cyan chair .", thing)
    assert not tells_of("i see a cyan chair .", frozenset())
    assert thing_words("ok . turn(180)", asked) == frozenset()


def test_the_robot_turns_back_as_soon_as_the_thing_is_told_of_and_goes_on_if_it_is_not_that():
    def says(heading_deg, history):
        if len(history) == 1:
            return "i see a red box . i do not see the red box that is meant . turn(60)"
        return box_at(200)(heading_deg, history)

    world = TurningWorld(says)
    words = {}
    plain = world.answer

    def wordy(observation):
        for update in plain(observation):
            if not words.get(observation.stamp_s) and len(observation.history) == 1:
                words[observation.stamp_s] = world.rig.clock.now()
                yield replace(update, text="i see a red box .", actions=(), result=None)
                until_s = world.rig.clock.now() + 0.7
                while world.rig.clock.now() < until_s:
                    world.tick()
            yield update

    world.answer = wordy
    assert world.run().status == "done"
    back = [plan for plan in world.of(Plan) if plan.origin == "search" and plan.actions[0].angle_deg < 0]
    assert len(back) == 1
    assert math.remainder(heading_deg(world) - 200, 360) == pytest.approx(0, abs=5)
