"""What moves the robot: safety gate, executor, emergency stop."""
