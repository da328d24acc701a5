"""Plain language moves a Unitree Go2: a draft VLM on the robot, a cloud VLM that verifies it over ZeroMQ.

::

    import vlm_spec_decode as vsd

    with vsd.Engine.connect("tcp://10.0.0.2:5557", keys="~/keys") as engine:  # or vsd.Engine.local()
        for update in engine.stream("go to the red chair", image="frame.jpg"):
            print(update.text, update.actions)
        with vsd.Robot.connect("go2", interface="eth0") as robot:  # "sim", "fake", "cmd_vel", your own
            result = vsd.Mission(engine, robot).run("go to the red chair", on_event=print)

The names below are the public ones. Each is imported when it is first used, so that importing the package
costs nothing and needs no optional library.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_spec_decode.core import errors as errors
    from vlm_spec_decode.core.errors import ActionError as ActionError
    from vlm_spec_decode.core.errors import ActionParseError as ActionParseError
    from vlm_spec_decode.core.errors import ActionRefused as ActionRefused
    from vlm_spec_decode.core.errors import BagError as BagError
    from vlm_spec_decode.core.errors import Cancelled as Cancelled
    from vlm_spec_decode.core.errors import CloudBusy as CloudBusy
    from vlm_spec_decode.core.errors import CloudError as CloudError
    from vlm_spec_decode.core.errors import CloudRefused as CloudRefused
    from vlm_spec_decode.core.errors import CloudTimeout as CloudTimeout
    from vlm_spec_decode.core.errors import CloudUnreachable as CloudUnreachable
    from vlm_spec_decode.core.errors import ConfigError as ConfigError
    from vlm_spec_decode.core.errors import EngineBusy as EngineBusy
    from vlm_spec_decode.core.errors import EngineClosed as EngineClosed
    from vlm_spec_decode.core.errors import ImageError as ImageError
    from vlm_spec_decode.core.errors import InstructionError as InstructionError
    from vlm_spec_decode.core.errors import MissingExtra as MissingExtra
    from vlm_spec_decode.core.errors import ModelError as ModelError
    from vlm_spec_decode.core.errors import OutOfMemory as OutOfMemory
    from vlm_spec_decode.core.errors import RobotError as RobotError
    from vlm_spec_decode.core.errors import RobotHeld as RobotHeld
    from vlm_spec_decode.core.errors import RobotRefused as RobotRefused
    from vlm_spec_decode.core.errors import RobotStale as RobotStale
    from vlm_spec_decode.core.errors import RobotUnreachable as RobotUnreachable
    from vlm_spec_decode.core.errors import UsageError as UsageError
    from vlm_spec_decode.core.errors import VocabularyMismatch as VocabularyMismatch
    from vlm_spec_decode.core.errors import VsdError as VsdError
    from vlm_spec_decode.core.types import Image as Image
    from vlm_spec_decode.core.types import Observation as Observation
    from vlm_spec_decode.edge.api import Answer as Answer
    from vlm_spec_decode.edge.api import AnswerStream as AnswerStream
    from vlm_spec_decode.edge.api import Engine as Engine
    from vlm_spec_decode.edge.api import Update as Update
    from vlm_spec_decode.mission.mission import Mission as Mission
    from vlm_spec_decode.mission.mission import MissionEvent as MissionEvent
    from vlm_spec_decode.mission.mission import MissionResult as MissionResult
    from vlm_spec_decode.mission.robot import Robot as Robot
    from vlm_spec_decode.models.registry import register_engine as register_engine
    from vlm_spec_decode.models.registry import register_family as register_family
    from vlm_spec_decode.robot.registry import register_robot as register_robot
    from vlm_spec_decode.strategies.base import Strategy as Strategy
    from vlm_spec_decode.strategies.registry import register_strategy as register_strategy

__version__ = "0.1.0"

_MODULES = {
    "vlm_spec_decode.core.errors": (
        *(
            "VsdError",
            "UsageError",
            "ConfigError",
            "InstructionError",
            "ImageError",
            "BagError",
        ),
        *("MissingExtra", "EngineBusy", "EngineClosed", "ModelError", "VocabularyMismatch", "OutOfMemory"),
        *("CloudError", "CloudUnreachable", "CloudRefused", "CloudBusy", "CloudTimeout"),
        *("RobotError", "RobotUnreachable", "RobotRefused", "RobotStale", "RobotHeld"),
        *("ActionError", "ActionParseError", "ActionRefused", "Cancelled"),
    ),
    "vlm_spec_decode.core.types": ("Image", "Observation"),
    "vlm_spec_decode.edge.api": ("Answer", "AnswerStream", "Engine", "Update"),
    "vlm_spec_decode.mission.mission": ("Mission", "MissionEvent", "MissionResult"),
    "vlm_spec_decode.mission.robot": ("Robot",),
    "vlm_spec_decode.models.registry": ("register_engine", "register_family"),
    "vlm_spec_decode.robot.registry": ("register_robot",),
    "vlm_spec_decode.strategies.base": ("Strategy",),
    "vlm_spec_decode.strategies.registry": ("register_strategy",),
}
"""Where each public name is. A new one stands here and among the imports above; a test compares both."""

_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", "errors", *_PLACES]  # noqa: PLE0604 - names only

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used. Raises MissingExtra if a library for it is missing."""
        import importlib

        from vlm_spec_decode.core import extras

        if name != "errors" and name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with extras.translate_missing():
            if name == "errors":
                found = importlib.import_module("vlm_spec_decode.core.errors")
            else:
                found = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """Return the public names, also those that have not been imported yet."""
        return sorted(__all__)
