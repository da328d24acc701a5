"""The robot's side: remote verifier and engine."""
