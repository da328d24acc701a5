"""The console: a web page for people beside a robot, and what serves it. Knows no ROS."""
