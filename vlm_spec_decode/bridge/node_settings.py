"""Which parameters each node declares. Imports of a node's modules only what is asked for."""

from __future__ import annotations

from vlm_spec_decode.bridge.managed import AUTOSTART
from vlm_spec_decode.bridge.parameters import Parameter

NODES = ("camera_node", "vlm_node", "locomotion_node", "monitor_node")


def settings(name: str) -> tuple[Parameter, ...]:
    """Return the parameters of one of `NODES`, in the order in which they are documented."""
    return (*_OF[name](), AUTOSTART)


def _camera() -> tuple[Parameter, ...]:
    from vlm_spec_decode.bridge import camera_node, mains

    return mains.SOURCE_PARAMETERS + mains.ROBOT_PARAMETERS + camera_node.PARAMETERS


def _vlm() -> tuple[Parameter, ...]:
    from vlm_spec_decode.bridge import engine_source, vlm_parameters

    return vlm_parameters.PARAMETERS + engine_source.PARAMETERS


def _locomotion() -> tuple[Parameter, ...]:
    from vlm_spec_decode.bridge import hands, locomotion_node, mains, surroundings, urgency, velocity_robot

    own = mains.DRIVER_PARAMETERS + mains.ROBOT_PARAMETERS + (urgency.PARAMETER,) + velocity_robot.PARAMETERS
    return own + locomotion_node.PARAMETERS + hands.PARAMETERS + surroundings.PARAMETERS


def _monitor() -> tuple[Parameter, ...]:
    from vlm_spec_decode.bridge import monitor_node

    return monitor_node.PARAMETERS


_OF = dict(zip(NODES, (_camera, _vlm, _locomotion, _monitor), strict=True))
