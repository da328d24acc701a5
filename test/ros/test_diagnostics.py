import math

import pytest

from vlm_spec_decode.ros import diagnostics


@pytest.mark.parametrize(
    ("soc", "level"),
    [
        (0.8, diagnostics.OK),
        (0.15, diagnostics.WARN),
        (0.05, diagnostics.ERROR),
        (math.nan, diagnostics.ERROR),
    ],
)
def test_a_battery_is_judged(soc, level):
    assert diagnostics.battery("robot: battery", soc).level == level


@pytest.mark.parametrize(
    ("age_s", "level"), [(None, diagnostics.STALE), (0.1, diagnostics.OK), (3.0, diagnostics.ERROR)]
)
def test_a_source_is_judged_by_its_age(age_s, level):
    assert diagnostics.rate("camera: frames", age_s, 1.0, {}).level == level


def test_the_array_carries_every_line_with_its_values():
    lines = [diagnostics.battery("robot: battery", 0.5), diagnostics.rate("x", 0.0, 1.0, {"frames": "3"})]
    message = diagnostics.array(lines, 4.0, "go2")
    assert [status.name for status in message.status] == ["robot: battery", "x"]
    assert message.status[0].values[0].value == "50"
    assert message.status[1].hardware_id == "go2"
    assert message.header.stamp.sec == 4
