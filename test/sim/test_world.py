"""The body in the room: what it does when told, and what stops it."""

import math
from itertools import pairwise

import pytest

from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.objects import KINDS, SceneObject
from vlm_spec_decode.sim.physics.kinematic_body import BodyLimits, foot_position, joint_angles, leg_angles
from vlm_spec_decode.sim.physics.room_model import FOOT_RADIUS_M, HIP_X_M, HIP_Y_M, HULL_HALF_M, LEGS
from vlm_spec_decode.sim.scene import Scene, random_scene
from vlm_spec_decode.sim.world import World

pytestmark = pytest.mark.sim
ORIGIN = Pose2D(0.0, 0.0)
SKIRTING_M = 0.008


def room(*objects: SceneObject, side_m: float = 8.0) -> Scene:
    return Scene(0, side_m, side_m, objects, ORIGIN)


def thing(kind: str, x_m: float, y_m: float = 0.0, yaw_rad: float = 0.0) -> SceneObject:
    return SceneObject(f"red {kind}", kind, "red", x_m, y_m, yaw_rad)


def drive(world: World, velocity: tuple[float, float, float], seconds: float) -> list[Pose2D]:
    """Command a velocity and return the poses every 5 ms."""
    world.command(*velocity)
    poses = []
    for _ in range(round(seconds / 0.005)):
        world.step(0.005)
        poses.append(world.pose)
    return poses


def test_same_calls_give_the_same_states() -> None:
    def run() -> list[Pose2D]:
        world = World(random_scene(3), seed=7)
        return drive(world, (0.8, 0.1, 0.7), 2.0) + drive(world, (-0.5, 0.0, -1.0), 2.0)

    assert run() == run()


def test_step_size_of_the_caller_does_not_matter() -> None:
    coarse, fine = World(room()), World(room())
    for world in (coarse, fine):
        world.command(0.6, 0.0, 0.5)
    for _ in range(10):
        coarse.step(0.1)
    for _ in range(400):
        fine.step(0.0025)
    assert coarse.pose == fine.pose
    assert coarse.time_s == fine.time_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((9.0, 0.0, 0.0), (3.8, 0.0, 0.0)),
        ((-9.0, 0.0, 0.0), (-2.5, 0.0, 0.0)),
        ((0.0, 9.0, 0.0), (0.0, 1.0, 0.0)),
        ((0.0, -9.0, 0.0), (0.0, -1.0, 0.0)),
        ((0.0, 0.0, 9.0), (0.0, 0.0, 4.0)),
        ((0.0, 0.0, -9.0), (0.0, 0.0, -4.0)),
    ],
)
def test_velocity_stays_within_the_vendors_limits(
    asked: tuple[float, float, float], given: tuple[float, float, float]
) -> None:
    world = World(Scene(0, 40.0, 40.0, (), ORIGIN))
    drive(world, asked, 3.0)
    assert world.velocity == pytest.approx(given)


def test_delay_lag_and_slew() -> None:
    limits = BodyLimits()
    world = World(room())
    world.command(0.5, 0.0, 0.0)
    world.step(limits.command_delay_s - 0.005)
    assert world.velocity[0] == 0.0
    speeds = [0.0]
    for _ in range(200):
        world.step(0.005)
        speeds.append(world.velocity[0])
    steepest = max(b - a for a, b in pairwise(speeds)) / 0.005
    assert 0.9 * limits.accel_mps2 <= steepest <= limits.accel_mps2 + 1e-9
    assert all(b >= a for a, b in pairwise(speeds)), "a first-order lag does not overshoot"
    assert speeds[-1] == pytest.approx(0.5)
    reached = next(i for i, v in enumerate(speeds) if v >= 0.5 * (1 - math.exp(-1))) * 0.005
    assert reached < 0.2


def test_a_short_order_to_stop_brings_it_to_rest_within_decimetres() -> None:
    world = World(room())
    drive(world, (0.6, 0.0, 0.0), 1.5)
    before = world.pose.x_m
    drive(world, (0.0, 0.0, 0.0), 1.0)
    assert world.velocity == (0.0, 0.0, 0.0)
    assert 0.02 < world.pose.x_m - before < 0.2


def test_strafe_and_turn_go_left_when_positive() -> None:
    world = World(room())
    drive(world, (0.0, 0.4, 0.0), 1.0)
    assert world.pose.y_m > 0.25
    assert abs(world.pose.x_m) < 1e-9
    drive(world, (0.0, 0.0, 0.0), 1.0)
    drive(world, (0.0, 0.0, 1.0), 1.0)
    assert 0.7 < world.pose.yaw_rad < 1.0


def hull_is_free_of(world: World, name: str) -> bool:
    """Whether no point of the body's outline lies in the object's footprint below the body's top."""
    item = world.object(name)
    pose = world.pose
    cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
    low = [p for p in item.primitives if p.solid and item.scale * (p.pos[2] - p.size[-1]) < 0.40]
    own_cos, own_sin = math.cos(item.yaw_rad), math.sin(item.yaw_rad)
    for i in range(-20, 21):
        for j in (-20, 20):
            for fore, left in ((i, j), (j, i)):
                fx, fy = HULL_HALF_M[0] * fore / 20, HULL_HALF_M[1] * left / 20
                dx = pose.x_m + cos * fx - sin * fy - item.x_m
                dy = pose.y_m + sin * fx + cos * fy - item.y_m
                x, y = (own_cos * dx + own_sin * dy) / item.scale, (-own_sin * dx + own_cos * dy) / item.scale
                for p in low:
                    hx, hy = p.size[:2] if p.shape == "box" else (p.size[0], p.size[0])
                    if abs(x - p.pos[0]) < hx - 2e-3 and abs(y - p.pos[1]) < hy - 2e-3 and p.shape == "box":
                        return False
                    if p.shape != "box" and math.hypot(x - p.pos[0], y - p.pos[1]) < 0.8 * hx:
                        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("velocity", "yaw_rad"),
    [((0.5, 0, 0), 0.0), ((3.8, 0, 0), 0.1), ((-1.0, 0, 0), math.pi), ((0, 1.0, 0), -1.5)],
)
def test_stops_at_what_it_runs_into(kind: str, velocity: tuple[float, float, float], yaw_rad: float) -> None:
    world = World(room(thing(kind, 1.8, 0.05, 2.9)), pose=Pose2D(0.0, 0.0, yaw_rad))
    for _ in drive(world, velocity, 4.0)[::20]:
        assert hull_is_free_of(world, f"red {kind}")
    assert world.touching == {f"red {kind}"}
    assert world.collisions == 1
    # A push begins anew in every step, so all that is left is less than one step's acceleration.
    assert math.hypot(*world.velocity[:2]) < 0.03
    assert world.is_free(world.pose)
    drive(world, tuple(-v for v in velocity), 1.0)  # type: ignore[arg-type]
    assert world.touching == frozenset()
    assert world.collisions == 1
    assert world.distance_to(f"red {kind}") > 0.4


@pytest.mark.parametrize(
    ("yaw_rad", "name"),
    [(0.0, "east wall"), (math.pi / 2, "north wall"), (math.pi, "west wall"), (-math.pi / 2, "south wall")],
)
def test_walls_stop_it_and_have_names(yaw_rad: float, name: str) -> None:
    world = World(room(side_m=4.0), pose=Pose2D(0.0, 0.0, yaw_rad))
    drive(world, (1.0, 0.0, 0.0), 3.0)
    assert world.touching == {name}
    assert world.collisions == 1
    assert 2.0 - HULL_HALF_M[0] - 0.01 < math.hypot(world.pose.x_m, world.pose.y_m) <= 2.0 - HULL_HALF_M[0]


def test_turning_on_the_spot_beside_a_box_is_blocked_by_the_bodys_corner() -> None:
    world = World(room(thing("box", 0.0, 0.45)))
    drive(world, (0.0, 0.0, 1.0), 3.0)
    assert world.touching == {"red box"}
    assert 0.05 < world.pose.yaw_rad < 1.2


def test_distance_and_bearing_against_geometry() -> None:
    ball, box = thing("ball", 2.0, 2.0), SceneObject("blue box", "box", "blue", -2.0, 0.0)
    world = World(room(ball, box), pose=Pose2D(0.0, 0.0, math.pi / 2))
    assert world.distance_to("red ball") == pytest.approx(math.sqrt(8) - 0.20)
    assert world.bearing_to("red ball") == pytest.approx(-math.pi / 4)
    assert world.distance_to("blue box") == pytest.approx(2.0 - 0.2225)
    assert world.bearing_to("blue box") == pytest.approx(math.pi / 2)
    with pytest.raises(SceneError, match="red ball, blue box"):
        world.distance_to("green door")


def test_ranges_are_clearances_of_the_body_front_left_rear_right() -> None:
    world = World(room(thing("box", 1.5)), pose=ORIGIN)
    front, left, rear, right = world.range_obstacle()
    assert front == pytest.approx(1.5 - 0.2225 - 0.35, abs=1e-6)
    assert (left, right) == pytest.approx((4.0 - 0.155 - SKIRTING_M,) * 2, abs=1e-6)
    assert rear == pytest.approx(4.0 - 0.35 - SKIRTING_M, abs=1e-6)
    far = World(Scene(0, 30.0, 30.0, (), ORIGIN))
    assert far.range_obstacle() == (math.inf,) * 4


@pytest.mark.parametrize("scale", [0.92, 1.0, 1.12])
@pytest.mark.parametrize("kind", KINDS)
def test_range_in_front_sees_every_kind(kind: str, scale: float) -> None:
    item = SceneObject(f"red {kind}", kind, "red", 2.0, 0.0, math.pi, scale)
    world = World(room(item), pose=ORIGIN)
    front = world.range_obstacle()[0]
    drive(world, (0.4, 0.0, 0.0), 6.0)
    # How far it then really gets, but for the cone's plate and the soles of shoes, which are below the rays.
    assert front == pytest.approx(world.pose.x_m, abs=0.07)


def test_robot_must_fit_where_it_is_put() -> None:
    scene = room(thing("box", 1.0))
    assert not World(scene).is_free(Pose2D(0.9, 0.0))
    with pytest.raises(SceneError, match="does not fit"):
        World(scene, pose=Pose2D(0.9, 0.1))
    with pytest.raises(SceneError, match="does not fit"):
        World(scene).teleport(Pose2D(5.0, 0.0))


def test_posture_slews_and_tilts_without_moving_the_feet() -> None:
    world = World(room())
    world.set_posture(0.25, 0.1, 0.3, -0.2)
    world.step(0.1)
    assert not world.posture_settled
    assert world.attitude[1] == pytest.approx(0.12)
    world.step(1.0)
    assert world.posture_settled
    assert world.attitude == pytest.approx((0.1, 0.3, -0.2))
    assert world.body_height_m == pytest.approx(0.25)
    assert world.pose == ORIGIN
    world.sync()
    heights = [world.data.geom(f"{leg}_foot").xpos[2] for leg in LEGS]
    assert heights == pytest.approx([FOOT_RADIUS_M] * 4, abs=1e-3)


def test_camera_pitches_down_when_the_nose_does() -> None:
    world = World(room())
    world.set_posture(pitch_rad=0.4)
    world.step(1.0)
    world.sync()
    forward = -world.data.camera("front").xmat.reshape(3, 3)[:, 2]
    assert forward[2] == pytest.approx(-math.sin(0.4), abs=1e-6)


def test_leg_kinematics_invert_each_other() -> None:
    for side in (-1, 1):
        for foot in ((0.0, side * 0.0955, -0.3), (0.08, side * 0.15, -0.22), (-0.1, side * 0.05, -0.25)):
            assert foot_position(leg_angles(foot, side), side) == pytest.approx(foot, abs=1e-9)


def test_standing_on_the_vendors_home_pose() -> None:
    # Published home pose: joints 0, 0.9, -1.8 with the trunk at 0.27 m and the feet's centres below the hips.
    foot = foot_position((0.0, 0.9, -1.8), 1)
    assert foot[0] == pytest.approx(0.0, abs=1e-9)
    assert joint_angles(-foot[2] + FOOT_RADIUS_M, (0, 0, 0), (0, 0, 0), 0.0)[:3] == pytest.approx(
        (0, 0.9, -1.8)
    )


def test_trot_lifts_diagonal_legs_together_and_stance_feet_do_not_slip() -> None:
    world = World(room())
    drive(world, (0.5, 0.0, 0.0), 1.0)
    lifted = {leg: set() for leg in LEGS}
    slips = []
    last: dict[str, tuple[float, float]] = {}
    for tick in range(100):
        world.step(0.005)
        world.sync()
        for leg in LEGS:
            x, y, z = world.data.geom(f"{leg}_foot").xpos.tolist()
            if z > FOOT_RADIUS_M + 0.02:
                lifted[leg].add(tick)
            elif z < FOOT_RADIUS_M + 0.004 and leg in last:
                slips.append(math.hypot(x - last[leg][0], y - last[leg][1]))
            last[leg] = (x, y)
    assert lifted["FR"] == lifted["RL"] != set()
    assert lifted["FL"] == lifted["RR"] != set()
    assert not lifted["FR"] & lifted["FL"]
    assert sorted(slips)[len(slips) // 2] < 5e-4


def test_feet_stand_outside_the_hips() -> None:
    world = World(room())
    world.sync()
    for leg in LEGS:
        x, y, _ = world.data.geom(f"{leg}_foot").xpos
        assert abs(x) == pytest.approx(HIP_X_M, abs=1e-6)
        assert abs(y) == pytest.approx(HIP_Y_M + 0.0955, abs=1e-6)
