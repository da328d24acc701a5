"""Unitree's ROS 2 messages without a ROS build: generated from the SDK's IDL, and topics that carry them.

rosbags makes the message classes and their CDR; what is published is encoded as ROS encodes it and decoded as
the robot's DDS types, and the other way round. So the bytes on the wire are what is tested.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from unitree_sdk2py.idl.unitree_api.msg import dds_ as api
from unitree_sdk2py.idl.unitree_go.msg import dds_ as go

from vlm_spec_decode.ros.unitree_topics import UnitreeMessages

STORE = get_typestore(Stores.EMPTY)


def _declare(kind: Any, package: str, module: Any) -> str:
    """Register a type of the SDK, and all in it, under its ROS name."""
    name = f"{package}/msg/{kind.__name__.removesuffix('_')}"
    if name in STORE.types:
        return name
    lines = [f"{_ros_type(form, package, module)} {field}" for field, form in kind.__annotations__.items()]
    STORE.register(get_types_from_msg("\n".join(lines), name))
    return name


def _ros_type(form: Any, package: str, module: Any) -> str:
    if isinstance(form, str):
        return _declare(getattr(module, form.rsplit(".", 1)[1]), package, module)
    if form in (str, bool):
        return "string" if form is str else "bool"
    held = form.__metadata__[0]
    if isinstance(held, str):
        return held
    size = getattr(held, "length", "") if type(held).__name__ == "array" else ""
    return f"{_ros_type(held.subtype, package, module)}[{size}]"


def blank(name: str) -> Any:
    """Return a message of zeros, as rclpy makes one."""
    kind = STORE.types[name]
    return kind(**{field: _zero(*form) for field, form in STORE.fielddefs[name][1]})


def _zero(node: Any, about: Any) -> Any:
    what = typing.cast(int, node)
    if what == 1:
        return {"string": "", "bool": False}.get(about[0], 0.0 if about[0].startswith("float") else 0)
    if what == 2:
        return blank(about)
    (inner, of), size = about
    if inner == 2:
        return [blank(of) for _ in range(size)]
    return np.zeros(size, dtype=of[0])


class Kind:
    """A message class as `create_publisher` takes it: called, it makes a blank one."""

    def __init__(self, kind: Any, package: str, module: Any) -> None:
        self.dds = kind
        self.name = _declare(kind, package, module)

    def __call__(self) -> Any:
        return blank(self.name)

    def to_dds(self, message: Any) -> Any:
        return self.dds.deserialize(bytes(STORE.serialize_cdr(message, self.name)))

    def to_ros(self, sample: Any) -> Any:
        return STORE.deserialize_cdr(sample.serialize(), self.name)


REQUEST, RESPONSE = Kind(api.Request_, "unitree_api", api), Kind(api.Response_, "unitree_api", api)
SPORT, LOW = Kind(go.SportModeState_, "unitree_go", go), Kind(go.LowState_, "unitree_go", go)
MESSAGES = UnitreeMessages(REQUEST, RESPONSE, SPORT, LOW)


class Topics:
    """A node's topics with the robot at their other end: `on_request` gets what is published."""

    def __init__(self, on_request: Callable[[Any], None]) -> None:
        self.is_heard = True
        self.published: list[Any] = []
        self._on_request = on_request
        self._hear: dict[str, tuple[Kind, Callable[[Any], None]]] = {}

    def create_publisher(self, kind: Kind, topic: str, depth: int) -> Any:
        assert topic == "/api/sport/request"

        def publish(message: Any) -> None:
            sample = kind.to_dds(message)
            self.published.append(sample)
            self._on_request(sample)

        return SimpleNamespace(publish=publish, get_subscription_count=lambda: int(self.is_heard))

    def create_subscription(
        self, kind: Kind, topic: str, take: Callable[[Any], None], depth: int, callback_group: Any
    ) -> str:
        self._hear[topic] = (kind, take)
        return topic

    def destroy_subscription(self, topic: str) -> None:
        del self._hear[topic]

    def destroy_publisher(self, publisher: Any) -> None:
        self.is_heard = False

    def say(self, topic: str, sample: Any) -> None:
        """Deliver what the robot writes."""
        if topic in self._hear:
            kind, take = self._hear[topic]
            take(kind.to_ros(sample))
