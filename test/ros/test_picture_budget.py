"""The parameters `image_budget_s` and `hardware_profile` of the VLM node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.ros


class Node:
    """A node that was started with these parameters."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    def has_parameter(self, name: str) -> bool:
        return False

    def add_on_set_parameters_callback(self, callback: object) -> None:
        """Do nothing: nothing is set later."""

    def declare_parameter(self, name: str, default: Any, descriptor: object) -> SimpleNamespace:
        self.given.setdefault(name, default)
        return self.get_parameter(name)

    def get_parameter(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(value=self.given[name])


def test_the_node_gives_its_engine_the_budget_of_its_parameter() -> None:
    from vlm_spec_decode.core.errors import ConfigError
    from vlm_spec_decode.ros.nodes.vlm import read_settings

    assert read_settings(Node()).image_budget_s == 0.25  # type: ignore[arg-type]
    assert read_settings(Node(image_budget_s=0.1)).image_budget_s == 0.1  # type: ignore[arg-type]
    for wrong in (0.0, -1.0, 11.0, float("nan")):
        with pytest.raises(ConfigError, match="image_budget_s"):
            read_settings(Node(image_budget_s=wrong))  # type: ignore[arg-type]


def test_the_node_paces_its_draft_by_the_profile_of_its_parameter() -> None:
    from vlm_spec_decode.core.errors import ConfigError
    from vlm_spec_decode.ros.nodes.vlm import read_settings

    assert read_settings(Node()).hardware is None  # type: ignore[arg-type]
    hardware = read_settings(Node(hardware_profile="go2_a100")).hardware  # type: ignore[arg-type]
    assert hardware is not None
    assert hardware.draft_ms == 72
    with pytest.raises(ConfigError, match="no profile 'warp'"):
        read_settings(Node(hardware_profile="warp"))  # type: ignore[arg-type]
