"""The benchmark's matrix of degenerate messages in small, and that it finds what takes blind for free."""

import pytest

from test.benchmark_module import benchmark
from vlm_spec_decode.ros import obstacle_sensors as surroundings
from vlm_spec_decode.ros import range_processing as obstacles

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def matrix():
    return benchmark("hardening_sensors")


def test_every_sixth_message_leaves_the_robot_standing_and_the_node_alive(matrix):
    tally = matrix.virtual(6)
    assert (tally.walked_on, tally.died, tally.unnamed, tally.refused) == ([], [], [], [])
    assert sum(tally.counts.values()) >= 80


def test_there_are_enough_of_each_sensor(matrix):
    m = matrix.messages
    made = {
        "scan": m.bad_scans(), "depth": m.bad_depths(), "points": m.bad_clouds(),
        "battery": m.bad_batteries(), "teleop": m.bad_twists(), "odometry": m.odometry_damages(),
        "sport state": matrix.sport_damages(),
    }  # fmt: skip
    for kind, cases in made.items():
        names = [case[0] if isinstance(case, tuple) else case.name for case in cases]
        assert len(names) >= 60, kind
        assert len(set(names)) == len(names), kind


def test_a_node_that_takes_blind_for_free_is_found_out(matrix, monkeypatch):
    def naive(cells, mount, *_):
        free = obstacles.free_ranges(mount.to_body(cells.returns))
        return obstacles.Sight(free, 1.0, 1, (), False)

    monkeypatch.setattr(surroundings, "sight_of", naive)
    tally, context = matrix.CaseCounts(), matrix.rclpy.Context()
    matrix.rclpy.init(context=context)
    try:
        matrix.obstacle_sensor(tally, context, "scan", 4)
    finally:
        matrix.rclpy.shutdown(context=context)
    assert len(tally.walked_on) > 5
    assert len(tally.unnamed) > 5


def test_a_node_that_dies_of_a_message_is_found_out(matrix, monkeypatch):
    monkeypatch.setattr(
        surroundings, "subscribe", lambda node, *args, on_fault, **kw: node.create_subscription(*args, **kw)
    )
    monkeypatch.setattr(surroundings, "sight_of", lambda *_: 1 / 0)
    tally, context = matrix.CaseCounts(), matrix.rclpy.Context()
    matrix.rclpy.init(context=context)
    try:
        with pytest.raises(ZeroDivisionError):
            matrix.obstacle_sensor(tally, context, "depth", 20)
    finally:
        matrix.rclpy.shutdown(context=context)
