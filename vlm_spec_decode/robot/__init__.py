"""Drivers behind the `RobotDriver` port."""
