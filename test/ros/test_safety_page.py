"""docs/safety.md names tests, figures and parameters that exist."""

import re
from pathlib import Path

import pytest
import yaml

from test.launch_files import declared_arguments
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.ros.parameter_docs import PARAMETERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safety.md").read_text()
NAMES = {parameter.name for parameters in PARAMETERS.values() for parameter in parameters}


def test_every_test_that_is_named_is_there():
    for path in re.findall(r"`(test/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for path, name in re.findall(r"`(test/[\w/.]+\.py)` \(`(\w+)`\)", PAGE):
        assert f"def {name}(" in (ROOT / path).read_text(), name


def test_every_figure_that_is_named_is_measured():
    code = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("robot*.py"))
    named = set(re.findall(r"`(\w+_(?:s|kept|limits|contacts|ratio))`", PAGE)) - NAMES
    named -= set(SafetyLimits.__slots__)
    assert len(named) >= 8
    for figure in named:
        assert f'"{figure}"' in code, figure


def test_the_limits_of_the_page_hold():
    limits = SafetyLimits.from_mapping(
        yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL).group(1))
    )
    assert limits.max_speed_mps == 0.3
    assert len(limits.geofence) == 4


@pytest.mark.parametrize("page", ["safety.md", "real_robot.md"])
def test_links_and_launch_arguments_are_there(page):
    text = (ROOT / "docs" / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    assert set(re.findall(r" (\w+):=", text)) <= set(declared_arguments(ROOT / "launch" / "go2.launch.py"))
