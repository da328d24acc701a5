"""Moves frames between edge and cloud, independent of their content."""
