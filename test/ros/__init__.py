"""Tests with rclpy contexts, each worker on a ROS domain of its own, on this machine only.

Set here because rclpy reads them when it is first imported.
"""

import os

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0)
ROS_DOMAIN = 60 + WORKER % 30
os.environ["ROS_DOMAIN_ID"] = str(ROS_DOMAIN)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
