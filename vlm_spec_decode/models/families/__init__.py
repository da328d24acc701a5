"""What differs between families of checkpoints: one base class, and one file per family."""
