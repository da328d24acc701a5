"""Pictures of the simulated room."""
