"""Drivers behind the `RobotDriver` port.

Importing the package sets the environment variables that the SDK's DDS library reads at its import.
"""

from vlm_spec_decode.core import environment

environment.prepare(environment.DDS)
