"""ROS 2 node classes around the library."""
