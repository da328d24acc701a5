"""A simulated Go2: world, camera and the robot's own DDS services."""
