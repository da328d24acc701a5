"""Types, ports and pure algorithms; knows nothing of models, sockets, ROS or robots."""
