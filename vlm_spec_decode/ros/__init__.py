"""ROS 2 around the library: node classes, message conversion, parameters.

Knows rclpy and messages; decoding, sockets and the Unitree SDK stay behind `edge`, `control` and `robot`.
Every node class is handed its `rclpy.node.Node` rather than being one, so that a test can build it on a
context of its own and nothing here can collide with a name of the base class.

Importing the package settles what ROS reads from the environment: rcl ends a process while it is imported if
RMW_IMPLEMENTATION names what is not installed.
"""

from vlm_spec_decode.core import environment

environment.prepare(environment.PYTHON, environment.ROS)
