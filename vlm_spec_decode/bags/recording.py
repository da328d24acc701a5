"""Writes received messages as a rosbag2 bag (mcap or sqlite3), byte for byte as they were sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, TypesysError, get_typestore

from vlm_spec_decode.bags.source import with_own_types
from vlm_spec_decode.core.errors import ConfigError

BAG_VERSION = 9
STRING = "std_msgs/msg/String"
FACTS = "/vlm/run"
"""Suffix of the topic with the settings and models of a run; metadata.yaml repeats its message."""

DEPTH = 10
FOREVER = QosTime(9223372036, 854775807)
"""The value that `ros2 bag record` writes for an unlimited duration."""


class Recording:
    """An open bag; `close` completes it. An earlier bag in the same folder is replaced."""

    def __init__(self, folder: Path, storage: str = "mcap") -> None:
        if (folder / "metadata.yaml").exists():
            shutil.rmtree(folder)
        elif folder.exists():
            raise ConfigError(f"{folder} is there and holds no bag; it is left as it is")
        self._types = with_own_types(get_typestore(Stores.ROS2_JAZZY))
        self._writer = Writer(folder, version=BAG_VERSION, storage_plugin=StoragePlugin[storage.upper()])
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._is_open = True

    def check(self, kind: str) -> None:
        """Raise ConfigError for a type whose definition is not known, which a bag must hold."""
        try:
            self._types.generate_msgdef(kind)
        except (TypesysError, KeyError) as error:
            raise ConfigError(f"no definition of {kind}") from error

    def announce(self, topic: str, kind: str, is_reliable: bool = True, is_latched: bool = False) -> None:
        """Add a topic. Raises ConfigError for a type whose definition is not known, which a bag must hold.

        `ros2 bag play` publishes with this QoS: a `/tf_static` that is not latched would reach no subscriber.
        """
        if topic in self._connections:
            return
        try:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._types, offered_qos_profiles=[_offered(is_reliable, is_latched)]
            )
        except (TypesysError, KeyError) as error:
            raise ConfigError(f"no definition of {kind}") from error

    def write(self, topic: str, kind: str, data: bytes, at_ns: int) -> None:
        """Add one serialised message."""
        self.announce(topic, kind)
        self._writer.write(self._connections[topic], at_ns, data)
        if topic.endswith(FACTS) and kind == STRING:
            self.note("vlm_run", self._types.deserialize_cdr(data, STRING).data)

    def write_text(self, topic: str, text: str, at_ns: int) -> None:
        """Add a std_msgs/String message."""
        message = self._types.types[STRING](text)
        self.write(topic, STRING, bytes(self._types.serialize_cdr(message, STRING)), at_ns)

    def note(self, key: str, text: str) -> None:
        """Add to the custom data of metadata.yaml."""
        self._writer.set_custom_data(key, text)

    def close(self) -> None:
        """Complete the bag. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._writer.close()


def _offered(is_reliable: bool, is_latched: bool) -> Qos:
    reliability = QosReliability.RELIABLE if is_reliable else QosReliability.BEST_EFFORT
    durability = QosDurability.TRANSIENT_LOCAL if is_latched else QosDurability.VOLATILE
    alive = QosLiveliness.AUTOMATIC
    return Qos(QosHistory.KEEP_LAST, DEPTH, reliability, durability, FOREVER, FOREVER, alive, FOREVER, False)
