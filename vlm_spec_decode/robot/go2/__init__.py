"""The Unitree Go2 through its SDK or through ROS 2 topics."""
