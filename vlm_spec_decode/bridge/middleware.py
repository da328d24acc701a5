"""What this package asks of ROS 2's middleware. Knows no node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlm_spec_decode.core import environment
from vlm_spec_decode.core.errors import ConfigError, MiddlewareError

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
NO_LOG_FILE = ("--ros-args", "--disable-external-lib-logs")
"""Arguments for a process that writes no log file, or cannot."""


def prefer_sockets() -> None:
    """Keep Fast DDS from shared memory, unless the environment says otherwise; call it before `rclpy.init`.

    Processes that are killed leave shared memory behind in a state that can silence whoever publishes to
    them: after some forty kills of a VLM node the camera node's frames reached nobody, and a new VLM node
    could not mend that. Frames of some 50 kB lose nothing on the loopback interface. It has no effect with
    ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, where rmw_fastrtps chooses by itself, and for other middleware.
    """
    os.environ.setdefault(TRANSPORTS, "UDPv4")


@contextmanager
def named() -> Iterator[None]:
    """Turn what starting ROS 2 can raise into one line. Raises MiddlewareError, ConfigError for arguments."""
    from rclpy.exceptions import ROSInterruptException
    from rclpy.impl.implementation_singleton import rclpy_implementation

    try:
        yield
    except (rclpy_implementation.RCLInvalidROSArgsError, rclpy_implementation.UnknownROSArgsError) as error:
        raise ConfigError(f"ROS arguments: {_reason(error)}") from error
    except (rclpy_implementation.RCLError, rclpy_implementation.RMWError, RuntimeError) as error:
        if isinstance(error, ROSInterruptException):
            raise
        rmw = environment.rmw_in_use() or "its middleware"
        raise MiddlewareError(
            f"ROS 2 does not start with {rmw}: {_reason(error)}; `vsd doctor` looks at what it reads"
        ) from error


def _reason(error: Exception) -> str:
    """Return what rcl says without the place in its source."""
    return " ".join(str(error).split()).split(", at /")[0]
