"""The engine's settings as parameters of the node, and the engine that they bring up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rclpy.node import Node

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import LinkProfile, from_mapping
from vlm_spec_decode.core.types import OBJECTIVES, RULES
from vlm_spec_decode.edge.client_protocol import ProtocolTiming
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.factory import DraftModel, EdgeRuntime, EdgeSettings, bring_up, run_facts
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


class EdgeEngineSource:
    """Brings the engine up as often as asked; the draft is loaded once."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._runtime: EdgeRuntime | None = None
        self._model = DraftModel(settings)

    def connect(self) -> Engine:
        """Return an engine with a fresh handshake. Raises CloudError or ModelError.

        Of several clouds the one that it spoke with last is asked first.
        """
        self.close()
        self._runtime = bring_up(self._settings, self._model.load())
        return self._runtime.engine

    def draft(self) -> Engine:
        """Return the draft alone as an engine. Raises ModelError."""
        return self._model.alone()

    def facts(self) -> str:
        """Return the JSON of what decides the tokens of the engine that is up; "" without one."""
        return json.dumps(run_facts(self._settings, self._runtime)) if self._runtime else ""

    def close(self) -> None:
        """Leave the cloud. Idempotent."""
        if self._runtime is not None:
            self._settings = replace(self._settings, cloud=self._runtime.clouds)
            self._runtime.close()
