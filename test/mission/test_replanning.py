"""Looking again while walking: the end is the same, the robot stands less, done() is for a frame at rest."""

import math

import pytest

from test.actions.rig import Rig
from test.mission.turning import Answer, Plan, TurningWorld
from vlm_spec_decode.actions.types import Done
from vlm_spec_decode.mission.state import RunnerConfig

WALKING = RunnerConfig(max_steps=20, replan="walking")
STANDING = RunnerConfig(max_steps=20, replan="standing")
GOAL_M, STEP_M = 4.0, 1.5


class Corridor(TurningWorld):
    """Answers by how far the box still is where the frame was taken: at most `STEP_M` a plan."""

    def __init__(self, **options):
        self.x_m = {}
        super().__init__(self._says, **options)

    def tick(self):
        super().tick()
        self.x_m[self._frame_s] = self.rig.robot.true_pose[0]

    def answer(self, observation):
        self.stamp_s = observation.stamp_s
        return super().answer(observation)

    def _says(self, _heading_deg, _history):
        left_m = round(GOAL_M - self.x_m[self.stamp_s], 1)
        if left_m <= 0.1:
            return "the red box is here . done()"
        return f"the red box is at {left_m} m . forward({min(left_m, STEP_M)})"


def test_it_ends_where_a_robot_ends_that_stands_for_every_look_and_sooner():
    walking, standing = (Corridor(answer_s=0.5, config=config) for config in (WALKING, STANDING))
    assert walking.run().status == standing.run().status == "done"
    for world in (walking, standing):
        assert world.rig.robot.true_pose[0] == pytest.approx(GOAL_M, abs=0.15)
    assert walking.time_s < 0.92 * standing.time_s
    assert any(plan.origin == "reprojected" for plan in walking.of(Plan))


def test_the_robot_walks_on_through_a_newer_plan():
    world = Corridor(answer_s=0.5, config=WALKING)
    world.run()
    speeds = [velocity[0] for at_s, velocity in world.rig.moves()]
    began = next(i for i, speed in enumerate(speeds) if speed > 0.4)
    ended = max(i for i, speed in enumerate(speeds) if speed > 0.4)
    assert min(speeds[began:ended]) > 0.1


def test_where_an_answer_takes_too_long_the_robot_looks_at_rest():
    world = Corridor(answer_s=4.0, config=WALKING)  # its first action after half of it
    assert world.run().status == "done"
    assert {plan.origin for plan in world.of(Plan)} == {"answer"}


def test_done_is_believed_on_a_frame_at_rest_only():
    world = Corridor(answer_s=0.5, config=WALKING)
    world.run()
    last = world.of(Answer)[-1]
    assert last.actions == (Done(),)
    assert world.x_m[last.observation.stamp_s] == pytest.approx(world.rig.robot.true_pose[0], abs=0.1)
    late = [plan for plan in world.of(Plan) if plan.origin == "reprojected"]
    assert not any(isinstance(action, Done) for plan in late for action in plan.actions)


def test_a_large_turn_is_for_a_frame_at_rest():
    world = Corridor(answer_s=0.5, config=WALKING)
    says = world.says
    turned = []

    def detour(heading_deg, history):
        moving = world.rig.robot.state().vx_mps > 0.2
        if moving and not turned:
            turned.append(world.rig.clock.now())
            return "something is in the way . turn(60) forward(1)"
        return says(heading_deg, history)

    world.says = detour
    assert world.run().status == "done"
    assert turned
    assert abs(math.degrees(world.rig.robot.true_pose[2])) < 5


@pytest.mark.parametrize("what", ["estop", "cancel", "mission"])
def test_what_stops_a_robot_stops_it_while_it_asks_ahead(what):
    world = Corridor(answer_s=0.5, config=WALKING)
    answer, ahead = world.answer, []

    def asked(observation):
        if world.rig.robot.state().vx_mps > 0.2 and not ahead:
            ahead.append(world.rig.clock.now())
            world.at[world.rig.clock.now() + 0.2] = {
                "estop": lambda: world.rig.executor.estop(True),
                "cancel": world.rig.executor.cancel,
                "mission": lambda: world.events.cancel("m", "superseded"),
            }[what]
        return answer(observation)

    world.answer = asked
    assert world.run().status == "cancelled"
    world.rig.go(1.0, heartbeat=False)
    assert world.rig.is_still
    assert ahead
    assert world.rig.clock.now() - ahead[0] < 3.0


def test_a_cloud_that_is_lost_while_it_asks_ahead_stops_the_robot():
    world = Corridor(answer_s=0.5, config=RunnerConfig(max_steps=20, replan="walking", fallback="stop"))
    world.lose_cloud(lambda: world.rig.robot.state().vx_mps > 0.2)
    ending = world.run()
    assert (ending.status, ending.reason) == ("failed", "CloudUnreachable")
    world.rig.go(1.0, heartbeat=False)
    assert world.rig.is_still
    assert world.rig.robot.true_pose[0] < STEP_M + 0.2


def test_answers_and_plans_are_numbered_upwards():
    world = Corridor(answer_s=0.5, config=WALKING, rig=Rig())
    world.run()
    numbers = [answer.number for answer in world.of(Answer)]
    assert numbers == sorted(set(numbers))
    plans = [(plan.answer, plan.sequence) for plan in world.of(Plan)]
    assert plans == sorted(plans)
    history = world.of(Answer)[-1].observation.history
    walked_m = sum(float(entry[8:-1]) for entry in history if entry.startswith("forward("))
    assert walked_m == pytest.approx(GOAL_M, abs=0.35)
