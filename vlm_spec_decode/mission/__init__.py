"""One instruction as a closed loop of look, answer, act. Knows no ROS."""
