"""What runs a checkpoint: one port, and one file per engine."""
