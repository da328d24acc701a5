"""The simulated robot's own DDS interface: state machine, services, topics, video."""
