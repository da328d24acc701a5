"""The engine's settings as parameters of the node, and the engine that they bring up."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.profiles import load_link
from vlm_spec_decode.edge.client_protocol import ProtocolTiming
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.ros.params import Parameters, parameters

OF_ENGINE = (
    *("cloud", "keys", "draft", "strategy", "rule", "objective", "temperature", "seed", "max_tokens"),
    *("draft_length", "answer_timeout_s", "connect_timeout_s", "grammar", "threads"),
)
"""Fields of `EdgeSettings` that are parameters of the node, by the same names."""

PARAMETERS = (
    *parameters(EdgeSettings, *OF_ENGINE),
    Setting("link_silence_s", 0.6, "Silence of the link, heartbeats too, that loses the cloud.", 0.3, 30.0),
    Setting(
        "link_file", "", "Link profile to emulate in front of the socket, a name or a YAML file; empty: none."
    ),
)


def read_settings(node: Node) -> EdgeSettings:
    """Declare the parameters and return what they say. Raises ConfigError."""
    values = Parameters(node, PARAMETERS)
    link = values.path("link_file")
    timing = ProtocolTiming.walking(values.real("link_silence_s"), values.real("connect_timeout_s"))
    given: dict[str, Any] = {name: values.value(name) for name in OF_ENGINE}
    given["keys"] = values.path("keys")
    return EdgeSettings(**given, link=load_link(str(link)) if link else None, timing=timing)
