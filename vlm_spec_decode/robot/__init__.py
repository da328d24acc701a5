"""Drivers behind the `RobotDriver` port.

Importing the package settles what the SDK's DDS library reads from the environment while it is imported.
"""

from vlm_spec_decode.core import environment

environment.prepare(environment.DDS)
