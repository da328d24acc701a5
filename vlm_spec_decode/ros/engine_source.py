"""The engine's settings as parameters of the node, and the engine that they bring up."""

from __future__ import annotations

from pathlib import Path

from rclpy.node import Node

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import LinkProfile, from_mapping
from vlm_spec_decode.core.types import OBJECTIVES, RULES
from vlm_spec_decode.edge.client_protocol import ProtocolTiming
from vlm_spec_decode.edge.factory import EdgeSettings
from vlm_spec_decode.ros.params import Parameter, Parameters, load_yaml
from vlm_spec_decode.strategies.registry import STRATEGIES

PARAMETERS = (
    Parameter(
        "cloud",
        "",
        "Address of the verifier, tcp://HOST:PORT; several with commas; empty: both models in this process.",
    ),
    Parameter("keys", "", "Folder of CURVE keys; empty: plaintext, to a cloud on this machine only."),
    Parameter("draft", "", "Folder or hub id of the draft model; empty: the one that ships."),
    Parameter(
        "strategy", EdgeSettings().strategy, "How edge and cloud decode together.", choices=tuple(STRATEGIES)
    ),
    Parameter("rule", EdgeSettings().rule, "How drafts are verified.", choices=RULES),
    Parameter("objective", EdgeSettings().objective, "What the cloud saves.", choices=OBJECTIVES),
    Parameter("temperature", 0.0, "0 is greedy.", 0.0, 2.0),
    Parameter("seed", 0, "Keys the noise of sampling, shared by both ends.", 0, 2**31 - 1),
    Parameter("max_tokens", 96, "Longest answer.", 1, 1024),
    Parameter("draft_length", 6, "Tokens drafted per round.", 1, 64),
    Parameter("answer_timeout_s", 30.0, "Silence of the cloud that fails an answer.", 0.5, 300.0),
    Parameter("link_silence_s", 0.6, "Silence of the link, heartbeats too, that loses the cloud.", 0.3, 30.0),
    Parameter("connect_timeout_s", 4.0, "How long a handshake may take, at each address.", 0.5, 60.0),
    Parameter("grammar", True, "Hold answers to the action language; the cloud must do the same."),
    Parameter("threads", 1, "Threads of the draft model.", 1, 64),
    Parameter("link_file", "", "YAML of a link profile to emulate in front of the socket; empty: none."),
)


def read_settings(node: Node) -> EdgeSettings:
    """Declare the parameters and return what they say. Raises ConfigError."""
    values = Parameters(node, PARAMETERS)
    link = values.path("link_file")
    silence_s, connect_s = values.real("link_silence_s"), values.real("connect_timeout_s")
    return EdgeSettings(
        cloud=values.text("cloud"),
        keys=values.path("keys"),
        draft=values.text("draft"),
        strategy=values.text("strategy"),
        rule=values.text("rule"),
        objective=values.text("objective"),
        temperature=values.real("temperature"),
        seed=values.integer("seed"),
        max_tokens=values.integer("max_tokens"),
        draft_length=values.integer("draft_length"),
        timeout_s=values.real("answer_timeout_s"),
        connect_s=connect_s,
        threads=values.integer("threads"),
        grammar=values.flag("grammar"),
        link=_link(link) if link else None,
        timing=ProtocolTiming.walking(silence_s, connect_s),
    )


def _link(path: Path) -> LinkProfile:
    try:
        return from_mapping(LinkProfile, {"name": path.stem} | dict(load_yaml(path)), str(path))
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error
