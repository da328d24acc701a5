"""Arguments that several launch files share. Does not import `launch`, so that tests can read it."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_spec_decode.core.types import OBJECTIVES
from vlm_spec_decode.strategies.registry import DEFAULT, STRATEGIES

YES_NO = ("true", "false", "True", "False")


@dataclass(frozen=True, slots=True)
class Argument:
    """One launch argument. Without a default it is required; `choices` limits its values."""

    name: str
    default: str | None
    description: str
    choices: tuple[str, ...] = ()


STRATEGY = Argument("strategy", DEFAULT, "How edge and cloud decode together.", tuple(STRATEGIES))
OBJECTIVE = Argument("objective", "latency", "What the cloud saves.", OBJECTIVES)
DRAFT = Argument("draft", "", "Folder or hub id of the robot's model; empty: the one that ships.")
TARGET = Argument("target", "", "Folder or hub id of the cloud's model; empty: the one that ships.")
CLOUD_PORT = Argument("cloud_port", "5557", "TCP port of the cloud on 127.0.0.1.")
NAMESPACE = Argument("namespace", "", "Namespace of the nodes.")
RVIZ = Argument("rviz", "false", "Also start rviz2 (of your ROS installation).", YES_NO)

DECODING = (STRATEGY, OBJECTIVE, DRAFT)
"""How the VLM node decodes."""

MISSION = (
    Argument("instruction", "", "Given as soon as everything is up; empty: publish one to vlm/instruction."),
    Argument("fallback", "hold", "What goes on without the cloud.", ("hold", "stop", "draft_only")),
    Argument("approve", "false", "Show every plan and wait for a yes on vlm/approve.", YES_NO),
    Argument("limits", "", "YAML of the safety gate's limits; empty: its defaults."),
    Argument("scan_topic", "", "LaserScan that stops the robot, beside its own ranges; empty: none."),
)
"""What moves the robot, and how far."""

PROCESSES = (
    NAMESPACE,
    Argument("frame_prefix", "", "Put before every frame, such as go2_a/, where several robots share /tf."),
    Argument(
        "autostart", "true", "Configure and activate the nodes; false: a lifecycle manager does it.", YES_NO
    ),
    Argument(
        "respawn", "false", "Start a node that ends again after 2 s, instead of ending everything.", YES_NO
    ),
    Argument("record", "", "Folder of a new bag that `vsd record` fills; empty: nothing is recorded."),
    RVIZ,
)
"""How the nodes are run, seen and recorded."""
