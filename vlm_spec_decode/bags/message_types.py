"""How the bytes of a message become its fields: by the bag's own definitions, else by those of ROS.

A recorder may have written all definitions, some, none, or empty ones; each type is looked up for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore

from vlm_spec_decode.edge.image_upload import FFMPEG_PACKET, FOXGLOVE_VIDEO, GO2_VIDEO

OTHERS: Mapping[str, str] = {
    GO2_VIDEO: "uint64 time_frame\nuint8[] video720p\nuint8[] video360p\nuint8[] video180p\n",
    FOXGLOVE_VIDEO: "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    FFMPEG_PACKET: "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\n"
    "uint8 flags\nbool is_bigendian\nuint8[] data\n",
}
"""Types of cameras that ROS does not ship, for bags without definitions."""

DISTROS: Mapping[str, Stores] = {
    name.removeprefix("ros2_"): store for store in Stores if (name := store.value).startswith("ros2_")
}
"""Stores by the name of the distribution, as metadata.yaml of a newer recorder gives it."""

READERS: Mapping[str, Callable[[str, str], Mapping[str, Any]]] = {
    "ros2msg": get_types_from_msg,
    "ros1msg": get_types_from_msg,
    "ros2idl": lambda definition, _: _from_idl(definition),
    "omgidl": lambda definition, _: _from_idl(definition),
}
"""By the encoding of a definition, as mcap and sqlite3 name it."""

IDL_SECTION = "=" * 80 + "\n"
DEFINITION_FAULTS = (TypesysError, ValueError, KeyError, TypeError, IndexError, AttributeError, SyntaxError)


class MessageTypes:
    """The types of one bag. `distro` names the ROS that recorded it; unknown ones count as Humble."""

    def __init__(self, distro: str = "") -> None:
        self._default = DISTROS.get(distro.lower(), Stores.ROS2_HUMBLE)
        self._own = {is_ros1: get_typestore(Stores.EMPTY) for is_ros1 in (False, True)}

    def learn(self, kind: str, definition: str, encoding: str, *, is_ros1: bool = False) -> bool:
        """Take over a definition that the bag holds; return False if it cannot be read.

        An empty one says nothing. The first of two for one type counts.
        """
        own, read = self._own[is_ros1], READERS.get(encoding)
        if not definition.strip() or kind in own.fielddefs:
            return True
        if read is None:
            return not encoding
        try:
            found = read(definition, kind)
            own.register({name: fields for name, fields in found.items() if name not in own.fielddefs})
        except DEFINITION_FAULTS:
            return False
        return True

    def decode(self, data: bytes, kind: str, *, is_ros1: bool = False) -> Any:
        """Return the message. Raises what `rosbags` raises where bytes or types do not fit."""
        own, default = self._own[is_ros1], _shipped(Stores.ROS1_NOETIC if is_ros1 else self._default)
        if kind not in own.fielddefs:
            return _decode(default, data, kind, is_ros1)
        try:
            return _decode(own, data, kind, is_ros1)
        except Exception:
            # A definition may lack parts of it, or have been cut; the type may be known all the same.
            if kind not in default.fielddefs:
                raise
            return _decode(default, data, kind, is_ros1)


def _decode(store: Any, data: bytes, kind: str, is_ros1: bool) -> Any:
    return store.deserialize_ros1(data, kind) if is_ros1 else store.deserialize_cdr(data, kind)


@lru_cache(maxsize=4)
def _shipped(which: Stores) -> Any:
    store = get_typestore(which)
    for kind, definition in OTHERS.items():
        found = get_types_from_msg(definition, kind)
        store.register({name: fields for name, fields in found.items() if name not in store.fielddefs})
    return store


def _from_idl(definition: str) -> Mapping[str, Any]:
    if not definition.startswith(f"{IDL_SECTION}IDL: "):
        return get_types_from_idl(definition)  # type: ignore[no-any-return]
    found: dict[str, Any] = {}
    for section in definition.split(IDL_SECTION)[1:]:
        found |= get_types_from_idl(section.partition("\n")[2])
    return found
