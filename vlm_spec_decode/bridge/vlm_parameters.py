"""Parameters of the VLM node that say how missions are run."""

from __future__ import annotations

from typing import cast

from vlm_spec_decode.bridge import action_face
from vlm_spec_decode.bridge.missions import Fallback, RunnerConfig
from vlm_spec_decode.bridge.parameters import Parameter, Parameters

PARAMETERS = (
    Parameter("instruction", "", "Given once, as soon as camera, robot and cloud are there; empty: none."),
    Parameter("max_steps", 24, "Answers after which a mission ends without done().", 1, 200, live=True),
    Parameter("heartbeat_hz", 20.0, "Rate at which the plan under way is republished.", 10.0, 100.0),
    Parameter("frame_timeout_s", 5.0, "Silence of the camera that fails a mission.", 0.5, 60.0, live=True),
    Parameter(
        "status_timeout_s", 2.0, "Silence of the locomotion node that fails a mission.", 0.5, 30.0, live=True
    ),
    Parameter(
        "act_timeout_s", 120.0, "Longest time that one answer's actions may take.", 1.0, 600.0, live=True
    ),
    Parameter("approve", False, "Show every plan and wait for a yes on vlm/approve.", live=True),
    Parameter(
        "approve_timeout_s", 120.0, "Silence after a plan is shown that means no.", 1.0, 3600.0, live=True
    ),
    Parameter(
        "approve_fresh_s",
        3.0,
        "Age of a plan's frame at the yes that asks for a new look.",
        0.5,
        5.0,
        live=True,
    ),
    Parameter("dry_run", False, "Show what would be sent to the robot, and send nothing.", live=True),
    Parameter(
        "queue", False, "A new instruction waits for the one under way, not superseding it.", live=True
    ),
    Parameter(
        "fallback",
        "hold",
        "Without the cloud: stand and wait for it, end, or go on by the draft alone.",
        choices=("hold", "stop", "draft_only"),
        live=True,
    ),
    Parameter("hold_timeout_s", 30.0, "How long a mission waits for a lost cloud.", 1.0, 600.0, live=True),
    action_face.PARAMETER,
)


def runner_config(values: Parameters) -> RunnerConfig:
    """Return what holds for the next mission."""
    real = values.real
    silence_s = real("status_timeout_s")
    return RunnerConfig(
        values.integer("max_steps"),
        silence_s,
        real("frame_timeout_s"),
        silence_s,
        real("act_timeout_s"),
        cast(Fallback, values.text("fallback")),
        real("hold_timeout_s"),
        real("approve_timeout_s"),
        real("approve_fresh_s"),
    )
