"""`vsd doctor` towards a robot: what it finds, and what it says where there is nothing to find."""

import socket

import pytest

from test.ros.processes import ROOT, Processes
from test.simulator import dds_domain
from vlm_spec_decode.cli import doctor as doctor_robot
from vlm_spec_decode.cli.doctor import examine
from vlm_spec_decode.core.errors import CloudRefused
from vlm_spec_decode.robot.go2 import config as network

pytestmark = [pytest.mark.dds, pytest.mark.slow]


def outcome(findings):
    return {finding.name: (finding.is_ok, finding.detail) for finding in findings}


@pytest.mark.timeout(200)
def test_a_robot_that_is_there_is_found_with_battery_and_camera(tmp_path):
    processes, domain = Processes(tmp_path, MUJOCO_GL="osmesa"), dds_domain()
    try:
        scene = ROOT / "config" / "scenes" / "empty.yaml"
        processes.vsd("sim", "sim", "--scene", scene, "--interface", "lo", "--domain", domain)
        found = {}
        for _ in range(4):
            found = outcome(doctor_robot.robot("lo", domain))
            if found.get("camera", (False,))[0]:
                break
    finally:
        processes.close()
    assert all(good for good, _ in found.values()), found
    assert "battery" in found["robot"][1]
    assert "frames a second" in found["camera"][1]


def test_nobody_there_is_said_with_what_to_do():
    found = outcome(doctor_robot.robot("lo", dds_domain() + 50))
    assert not found["robot"][0]
    assert "switch the robot on" in found["robot"][1]


def test_a_wrong_interface_and_a_wrong_dds_are_named():
    found = outcome(doctor_robot.robot("none7", 0))
    assert not found["interface"][0]
    assert "none7" in found["interface"][1]
    outside = next((name for _, name in socket.if_nameindex() if name != "lo"), None)
    if outside is not None and not doctor_robot.robot(outside, 0)[1].is_ok:
        assert "0.10" in doctor_robot.robot(outside, 0)[1].detail


@pytest.mark.parametrize("version", ["11.0.1", "12.0"])
def test_a_dds_that_must_not_meet_a_robot_is_refused_before_anything_is_joined(monkeypatch, version):
    """Towards anything but loopback, wherever the suite runs and whatever is installed."""
    monkeypatch.setattr(network.metadata, "version", lambda _: version)
    monkeypatch.setattr(network, "is_loopback", lambda _: False)
    monkeypatch.setattr(doctor_robot, "_run", lambda _: pytest.fail("joined"))
    findings = doctor_robot.robot("lo", 0)
    bad = [finding for finding in findings if not finding.is_ok]
    assert len(bad) == 1
    assert f"cyclonedds {version} must not join" in bad[0].detail
    assert "0.10" in bad[0].detail
    assert "crash" in bad[0].detail


def test_a_cloud_of_another_vocabulary_asks_for_another_draft(monkeypatch):
    given = []

    def refused(command):
        given.append(command[-1])
        raise CloudRefused("vocabulary_mismatch", "the robot's draft has 379 tokens, the target 151936")

    monkeypatch.setattr(doctor_robot, "_run", refused)
    finding = doctor_robot.cloud("tcp://127.0.0.1:5557", None, "checkpoints/draft")
    assert given == ["checkpoints/draft"]
    assert "--draft" in finding.advice
    assert "keys" not in finding.detail + finding.advice


def test_a_cloud_that_is_not_there_is_named(free_tcp_port):
    finding = doctor_robot.cloud(f"tcp://127.0.0.1:{free_tcp_port}", None)
    assert not finding.is_ok
    assert "vsd cloud" in finding.detail


def test_every_finding_says_something():
    assert all(finding.detail for finding in examine())


@pytest.mark.parametrize(
    ("skew_s", "said"),
    [(0.004, "0.00 s behind"), (-3.0, "3.00 s ahead of this one: harmless here"), (1.7e9, "its own start")],
)
def test_a_robots_clock_is_compared_with_this_one(skew_s, said):
    assert said in doctor_robot._skew({"skew_s": skew_s}).detail


def test_the_kernels_bound_of_the_clocks_error_is_told():
    error_s = doctor_robot.clock_error_s()
    assert error_s is None or 0.0 <= error_s < 100.0
    assert "synchronised" in doctor_robot.clock_sync().detail
