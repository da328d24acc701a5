"""Tests with rclpy contexts, each process on a ROS domain of its own, on this machine only.

Set here because rclpy reads them when it is first imported.
"""

import os

NAMESPACE = f"/test_{os.getpid()}"
"""Keeps this process's topics apart from those of another test run that has come by the same domain."""

ROS_DOMAIN = 60 + os.getpid() % 40
os.environ["ROS_DOMAIN_ID"] = str(ROS_DOMAIN)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
