"""Bodies of the simulated robot and the MuJoCo models that they move in."""
