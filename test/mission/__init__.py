"""Missions without ROS: runner, queue, leases, progress."""
