"""ROS 2 around the library: node classes, message conversion, parameters.

Knows rclpy and messages; decoding, sockets and the Unitree SDK stay behind `edge`, `control` and `robot`.
Every node class gets its `rclpy.node.Node` as an argument rather than being one, so that a test can build it
on a context of its own and no name collides with one of the base class.

Importing the package sets and checks the environment variables that ROS reads: rcl ends the process at its
import if RMW_IMPLEMENTATION names a middleware that is not installed.
"""

from vlm_spec_decode.core import environment

environment.prepare(environment.PYTHON, environment.ROS)
