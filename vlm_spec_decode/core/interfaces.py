"""Where the sources of `vlm_spec_decode_msgs` lie: the texts of this package's ROS messages.

They are the single source of the messages: ROS builds its types from them, and bags are written and read with
them where no ROS is installed. A checkout has them beside the package, an installation below share/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vlm_spec_decode.core.errors import ConfigError

NAME = "vlm_spec_decode_msgs"


def interface_folder() -> Path:
    """Return the folder of the interface package's sources. Raises ConfigError if it is not there."""
    package = Path(__file__).resolve().parents[1]
    prefixes = (Path(sys.prefix), *package.parents[1:4])
    beside = [package.parent / NAME, *(prefix / "share" / package.name / NAME for prefix in prefixes)]
    for folder in beside:
        if (folder / "package.xml").is_file():
            return folder
    raise ConfigError(f"the sources of {NAME} are neither beside the package nor in {beside[1]}")


def message_definitions() -> dict[str, str]:
    """Return the text of every message by its type, such as `vlm_spec_decode_msgs/msg/Plan`."""
    paths = sorted(interface_folder().glob("msg/*.msg"))
    return {f"{NAME}/msg/{path.stem}": path.read_text(encoding="utf-8") for path in paths}
